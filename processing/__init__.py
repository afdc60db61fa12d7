"""From an image and a text to the model's input: the processors, the collator, and where training data come from."""
