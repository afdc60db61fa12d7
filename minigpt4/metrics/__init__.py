"""Metrics: one module each, with plain functions and an `evaluate` metric around them.

`evaluate.load("minigpt4/metrics/chair.py")` loads one from this folder without downloading anything. It runs a copy of the
file, so these modules use absolute imports. `statistics.py` computes an interval for every figure.
"""
