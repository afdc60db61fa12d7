"""Every claim about a model as a command: suites ask and score, the runner generates, a judge reads, a report shows.

files.py     the benchmarks' own files            suites/          what is asked, and what the answers are worth
runner.py    a suite on a model, results          predictions.py   batches, processes, resumed runs
judge.py     an LLM or a person who reads         report.py        results as a page
probe.py     what a linear layer could see        lmms.py          the model in other people's harnesses
"""
