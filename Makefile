# The first target that needs Python makes .venv and installs the project with its development tools, once;
# a changed pyproject.toml or constraints.txt installs again.   make test PYTHON=python3.12   chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test slow check docs stats clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: $(INSTALLED) ## train a noise-level regressor, measure and correct the shift, write the report
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## the fast tests, on two processes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

slow: $(INSTALLED) ## the slow tests
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m slow

check: $(INSTALLED) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED) ## the site, into site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

stats: $(INSTALLED) ## the size of the house: files, lines, floors, arrows
	$(BIN)/python -m tests.house

clean: ## remove what was built and written, but not .venv
	rm -rf build dist site *.egg-info outputs .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
