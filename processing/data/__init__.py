"""Images with texts, from any source, as training examples of a stage."""
