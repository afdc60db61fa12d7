"""Images with texts, wherever they come from, as what a stage learns from."""
