# Needs Python 3.11+ and make; everything else goes into .venv at the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint clean

demo: install
	$(BIN)/moe-probe demo --out runs/demo --resume

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest -q -n 2

lint: install
	$(BIN)/ruff check moe_probe tests scripts benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
