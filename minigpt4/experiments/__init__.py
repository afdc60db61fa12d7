"""Whole experiments on this machine: the quickstart, the paper's ablations, and the pages that show them."""
