# From a fresh clone with python3.11+ and make: `make demo`, `make test`, `make check`.

PYTHON ?= python3
OUT ?= runs/demo
PIP := .venv/bin/python -m pip
PINS := pyproject.toml constraints.txt

.PHONY: help demo test check clean

help: ## print the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */:/' | awk -F: '{printf "make %-7s %s\n", $$1, $$2}'

demo: .venv/package.stamp ## LESS against random, BM25 and the full pool on a small model and pool, into OUT=runs/demo
	.venv/bin/gradsift demo --out $(OUT)

test: .venv/dev.stamp ## all tests
	@scripts/test

check: .venv/dev.stamp ## lint, format, types and import layers
	@scripts/check

clean: ## delete the environment, caches and builds; runs stay
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch in a step of its own, so that its pin alone decides the wheel: resolved with the rest it brings CUDA along.
.venv/torch.stamp: $(PINS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradsift needs Python 3.11 or newer: make PYTHON=…")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet -c constraints.txt torch
	@touch $@

.venv/package.stamp: .venv/torch.stamp
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

.venv/dev.stamp: .venv/torch.stamp
	$(PIP) install --quiet -c constraints.txt -e . --group dev
	@touch $@ .venv/package.stamp
