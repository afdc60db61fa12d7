"""An OpenAI-compatible server for a MiniGPT-4: requests are checked here (`guard`), an existing engine answers them."""
