# Two commands do everything on a machine with Python 3.11 or newer and nothing else: `make demo` and `make test`.
# Another interpreter: make test PYTHON=/path/to/python3.12. More pytest options: make test PYTEST_ARGS="-k masks".

PYTHON ?= python3
PYTEST_ARGS ?=
# As many test processes as there are cores; PYTEST_WORKERS=0 runs all tests in one.
PYTEST_WORKERS ?= auto
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.complete

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-quick lint format clean FORCE

help:
	@echo "make demo        train, export, run and check the digits classifier; prints where to look"
	@echo "make test        ruff, mypy --strict, all tests but those of the next line"
	@echo "make test-all    the same with the model families (BERT, U-Net, graphs ...) and every construct of docs/constructs.md"
	@echo "make test-quick  tests that take seconds"
	@echo "make lint        ruff and mypy --strict only"
	@echo "make format      let ruff rewrite the sources"
	@echo "make clean       remove the environment, caches and what the demo wrote"

demo: $(STAMP)
	$(RUN) -m deploykit demo

test: lint
	$(RUN) -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not families and not exhaustive" $(PYTEST_ARGS)

test-all: lint
	$(RUN) -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

test-quick: $(STAMP)
	$(RUN) -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not slow and not families and not exhaustive" $(PYTEST_ARGS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is started over.
$(STAMP): pyproject.toml constraints.txt tools/environment.sh
	@bash tools/environment.sh "$(PYTHON)" "$(VENV)" "$(STAMP)"

# An environment whose interpreter has gone, after an upgrade of the system's Python, is built again.
ifeq ($(shell $(RUN) -c 'print("runs")' 2>/dev/null),)
$(STAMP): FORCE
endif
