"""The model and what a Hub repository has beside it: its code is copied there, without the rest of the package."""
