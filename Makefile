# `make test` and `make demo` do all the set-up they need on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test demo check install clean

test: install
	$(BIN)/python tools/check.py
	$(BIN)/python -m pytest -q

demo: $(VENV)/demo
	$(BIN)/python tools/demo.py

check: install
	$(BIN)/python tools/check.py

install: $(VENV)/installed

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[run]"
	touch $@

$(VENV)/installed: $(VENV)/demo
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,run,peers]" transformers
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
