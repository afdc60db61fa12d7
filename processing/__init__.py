"""From images and text to model inputs: the processors, the collator and the training data."""
