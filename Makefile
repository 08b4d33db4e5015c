# Needs Python 3.11+ and make; everything else goes into .venv at the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo study test test-peers docs lint audit clean

demo: install
	$(BIN)/moe-probe demo --out runs/demo --resume
	$(BIN)/moe-probe compare runs/demo --by topic --by register --out runs/demo-compared --force
	@echo "Report: runs/demo/report.html   Notebook: runs/demo-compared/compare.ipynb (and compare.html)"

# the study behind docs/case_studies/shipped_model.md: SAEs of three layers
study: install
	$(BIN)/moe-probe run data/model/final --corpus data/probe_corpus.jsonl --out runs/study --resume \
	  --label register --strata register --hidden-share 1.0 --dtype float32 --sae-layers 1,3,5 \
	  --widths 256,1024,4096 --depth-first --ablate mask

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

# agreement with packages too heavy for the development environment; docs/benchmarks.md has the last result
test-peers:
	test -d .venv-peers || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest sae-lens==6.54.12 triton==3.9.0
	.venv-peers/bin/python -m pytest -q --override-ini addopts=--import-mode=importlib -W default tests/peers

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff format --check moe_probe tests scripts benchmarks
	$(BIN)/ruff check moe_probe tests scripts benchmarks
	$(BIN)/mypy

# known vulnerabilities of the pinned versions, in an environment of its own; asks pypi.org, so that it is no part of CI
audit:
	test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/python scripts/audit.py constraints.txt

clean:
	rm -rf $(VENV) runs
