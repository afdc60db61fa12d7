"""How well a model sees and speaks: one module a metric, of plain functions and an `evaluate` metric over them.

`evaluate.load("minigpt4/metrics/chair.py")` loads one from this folder and fetches nothing. It runs such a file from a
copy elsewhere, so that these modules import by absolute names. `statistics.py` puts an interval around every figure.
"""
