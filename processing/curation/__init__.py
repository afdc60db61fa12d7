"""The paper's curation of stage-2 data (section 3.2), as steps over one store.

    sample -> generate -> fix -> filter -> verify -> publish

store.py      the SQLite file between the steps          endpoint.py   requests to an OpenAI-compatible server
sample.py     which pictures                             texts.py      what can be said of a text by rules, and diffs
generate.py   the stage-1 model describes them           verify.py     decisions, leases, the decisions file
fix.py        an LLM repairs the text                    page.py       the web page where people decide
filter.py     rules reject what is left                  publish.py    accepted pairs as a data set with its card

No step changes what another one wrote; each does what is not done yet, so that the same command goes on after a stop.
"""
