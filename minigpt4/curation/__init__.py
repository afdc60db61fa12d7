"""The paper's curation of stage-2 data (section 3.2), as steps over one store.

    sample -> generate -> fix -> filter -> verify -> publish
    sample -> pairs -> judge -> publish                        not the paper's: preferences for less invention

store.py      the SQLite file between the steps          endpoint.py   requests to an OpenAI-compatible server
sample.py     which images                               texts.py      rules about texts, and diffs
generate.py   the stage-1 model describes them           verify.py     decisions, leases, the decisions file
fix.py        an LLM repairs the text                    page.py       the web page where people decide
filter.py     rules reject what is left                  publish.py    what was accepted as a data set with its card
pairs.py      two sampled answers about each picture     judge.py      which of the two invents less

No step changes what another one wrote; each does what is not done yet, so the same command continues after a stop.
"""
