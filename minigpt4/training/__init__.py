"""A run from a recipe to a model: the Trainer, the frozen LLM's loss, checkpoints, validation."""
