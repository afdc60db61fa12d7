"""The model code that a Hub repository contains: it is copied there without the rest of the package, and without chat.py."""
