"""Every claim about a model as a command: suites ask and score, the runner generates, a judge reads, a report shows.

files.py     the benchmarks' own files            suites.py     what is asked, and what the answers are worth
runner.py    batches, processes, resumed runs     judge.py      an LLM or a person who reads the answers
probe.py     what a linear layer could see        report.py     results as a page
"""
