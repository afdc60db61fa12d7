"""Evaluation, with a command for every claim: suites ask and score, the runner generates, a judge reads, a report shows.

data_files.py  the benchmarks' own files          suites/          what is asked, and how answers are scored
runner.py    a suite on a model, results          predictions.py   batches, processes, resumed runs
judge.py     an LLM or a person who reads         results_page.py  results as a page
probe.py     what a linear layer could see        lmms.py          a model in lmms-eval
                                                  vlmevalkit.py    a model in VLMEvalKit, a file to copy there

Other people's harnesses measure the same models:

lmms-eval finds this package by its entry point. `pip install "lmms-eval>=0.7.3"` (0.7 lacks its own task files), then

    python -m lmms_eval --model minigpt4 --model_args pretrained=DIR_OR_ID --tasks pope,gqa,coco2017_cap_val

benchmarks/lmms.py runs two tasks with generated images, and tests/minigpt4/evaluation/test_lmms.py one, up to its score.
The benchmarks' own data sets are on the Hub, and were not downloaded here.

VLMEvalKit can use vlmevalkit.py as one of its models, as described there. Or it asks any OpenAI-compatible server, without
any code of ours; vlmevalkit.json is its configuration for that:

    sed s,DIR_OR_ID,outputs/quickstart/model, PATH/TO/minigpt4/evaluation/vlmevalkit.json > mine.json  # as it is served
    minigpt4 serve --model outputs/quickstart/model --port 8000
    git clone https://github.com/open-compass/VLMEvalKit && cd VLMEvalKit && pip install -e .
    python run.py --config mine.json --api-nproc 16

VLMEvalKit itself was not run here: it is not on PyPI, and GitHub could not be reached. The tests check that vlmevalkit.py,
with a base class of the same interface, answers as our own code does (tests/minigpt4/evaluation/test_vlmevalkit.py), and
that our server answers the request that VLMEvalKit's class GPT4V sends with this configuration, as its vlmeval/api/gpt.py
builds it (tests/minigpt4/serving/test_serving.py). Yes-no tasks such as POPE are scored by rules; for MMBench it may need a
judge (its --judge).
"""
