"""What reads or writes a Hub repository: exports and their cards, published checkpoints, models made from parts."""
