# `make demo` runs every stage, `make test` the tests. Both set themselves up on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
# Tests start hundreds of processes: none should compile the modules of the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all lint format setup clean

demo: setup
	@$(RUN) -m launch demo

# Two at a time: much of a test is waiting for processes to start. Four at a time took no less, and a slow test met its deadline.
PYTEST := $(RUN) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: setup
	@$(PYTEST)

test-slow: setup  # the demo alone: it uses two cores
	@$(PYTEST) -m 'slow and not demo'
	@$(RUN) -m pytest -m demo tests/system/test_demo.py

test-all: setup  # both of these at once, which share what takes minutes to make
	@$(PYTEST) -m 'not (gpu or demo or campaign or wandb)'
	@$(RUN) -m pytest -m demo tests/system/test_demo.py

lint: setup
	@$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && $(VENV)/bin/pyright --pythonpath $(RUN)

format: setup
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

setup: $(VENV)/.installed

# torch comes first and pinned: pip then takes the CPU build where a find-links folder or index offers one.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; name one with make PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) with $(PYTHON), once"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-warn-script-location torch==2.13.0 -c constraints.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-warn-script-location -e '.[dev]' -c constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
