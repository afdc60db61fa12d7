"""Reading and writing Hub repositories: exports and their cards, published checkpoints, models built from parts."""
