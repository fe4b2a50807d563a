# Realm's commands. Each makes what it needs first, so that any of them works in a fresh clone.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
BIN := $(VENV)/bin
SESSION := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
NATIVE := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: demo test check bench compare docs clean help

help:  ## Show this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## One server, eight clients at once, answers streamed live.
	@$(BIN)/realm pull $(MODEL)
	@$(BIN)/python examples/demo.py --model $(MODEL)

test: $(VENV)/.test  ## All tests: unit, kernels, integration, conformance, e2e.
	@$(BIN)/realm pull smollm2-135m
	@$(BIN)/realm pull gemma3-270m
	$(BIN)/python -m pytest

check: $(VENV)/.test  ## Formatting, lint, types, import layers, generated docs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

bench: $(VENV)/.installed  ## Speed of this machine, as a table and a row in benchmarks/results.
	$(BIN)/realm bench $(MODEL) --profile --out benchmarks/results/bench.jsonl

compare: $(VENV)/.test  ## Realm beside llama.cpp and OpenVINO GenAI (builds them first, about 10 minutes; measures 20).
	PYTHON=$(BIN)/python benchmarks/compare/setup_peers.sh
	$(BIN)/python benchmarks/compare/compare.py --session $(SESSION) \
		"$$($(BIN)/realm pull smollm2-135m)" "$$($(BIN)/realm pull gemma3-270m)" > /dev/null
	$(BIN)/python benchmarks/compare/compare_http.py --session $(SESSION) "$$($(BIN)/realm pull smollm2-135m)"

docs: $(VENV)/.test  ## Write the generated pages anew.
	$(BIN)/python docs/generate.py

clean:  ## Remove what was built; models stay in the user's cache.
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Editable, but the native module is compiled here: its sources are prerequisites.
$(VENV)/.installed: $(NATIVE) | $(BIN)/python
	@echo "installing Realm and compiling its kernels (a minute or two)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# torch comes first and alone, so that pip takes the CPU build where its settings offer one.
$(VENV)/.test: $(NATIVE) | $(BIN)/python
	@echo "installing Realm and its test tools, compiling its kernels (a few minutes)"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(VENV)/.installed $@
