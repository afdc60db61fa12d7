"""The scripts that `accelerate launch` runs; each opens with its command."""
