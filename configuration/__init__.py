"""What a model is and how it is trained, as data: the config class, the recipes, accelerate's settings."""
