# Two commands are enough: `make book` and `make test`. Each makes its own environment first.
PYTHON ?= python3
IN_ENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help env book test lint format notebooks lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

env: ## make or refresh .venv from requirements.lock (PYTHON=python3.12 chooses the interpreter)
	@$(PYTHON) tools/env.py

book: env ## run the lessons that changed and render the book into _build/html
	@$(IN_ENV) -m tools.book

test: env ## run every gate; GATES="lint unit" runs only these
	@$(IN_ENV) -m tools.run_gates $(GATES)

lint: env ## check style
	@$(IN_ENV) -m tools.run_gates lint

format: env ## put the code into the project's style
	@$(IN_ENV) -m ruff check --fix . && $(IN_ENV) -m ruff format .

notebooks: env ## make the student and reference notebooks from the lessons
	@$(IN_ENV) tools/notebooks.py

lock: env ## choose the newest versions that pyproject.toml allows
	@$(IN_ENV) -m uv pip compile --universal --python-version 3.10 --all-extras --no-header --no-annotate \
		--upgrade pyproject.toml -o requirements.lock

clean: ## remove everything that is made, except .venv
	@rm -rf _build build dist .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
