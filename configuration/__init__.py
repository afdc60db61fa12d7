"""Configuration of models and their training: the config class, the recipes, accelerate's settings."""
