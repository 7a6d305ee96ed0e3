# Every path is relative, so the repository may lie in a folder with spaces. Set-up lives in .venv and is repeated only when
# pyproject.toml or constraints.txt change: the files .venv/ready* remember what was installed.

# The interpreter that makes .venv: 3.11 or newer.
PYTHON ?= python3
# TORCH=cpu takes the small CPU-only build of torch (on Linux the usual one brings gigabytes of CUDA); TORCH=cu130 and the
# like take a certain CUDA. pip prefers 2.13.0+cpu over 2.13.0 where it sees both. It counts at the first set-up only.
TORCH ?=
# Processes that run the tests, with one thread each.
WORKERS ?= 2

INDEX := $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))
INSTALL := .venv/bin/python -m pip install --disable-pip-version-check $(INDEX) --constraint constraints.txt --editable
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 CI=true TQDM_DISABLE=1 \
	.venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile
NOTEBOOKS := $(wildcard notebooks)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help tour test test-fast lab sync bench book clean

help: ## list the targets
	@echo 'make TARGET [PYTHON=python3.12] [TORCH=cpu]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

tour: .venv/ready ## train a small model on real digits and sample from it in every way (3 minutes); ARGS="--data mnist"
	.venv/bin/python -m minimal tour $(ARGS)

test: .venv/ready-dev .venv/ready-bench ## all unit tests and every notebook
	$(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout 300 tests $(NOTEBOOKS) $(ARGS)

test-fast: .venv/ready-dev ## the unit tests without the slow ones (2 minutes)
	$(PYTEST) -m 'not slow' tests $(ARGS)

lab: .venv/ready-dev ## open the notebooks in JupyterLab
	.venv/bin/python -m jupyterlab $(NOTEBOOKS)

sync: .venv/ready-dev ## bring each edited notebook up to date: .py -> .ipynb, executed; ARGS="notebooks/0_start/01_tour.py"
	.venv/bin/python -m minimal.notebooks sync $(ARGS)

bench: .venv/ready-bench ## measure our samplers beside other libraries; ARGS="decode"
	.venv/bin/python -m minimal bench $(ARGS)

book: .venv/ready-book ## build the site into book/_build/html
	.venv/bin/python -m minimal.book

clean: ## remove .venv and everything that was built; downloads in data/cache stay
	rm -rf .venv book/_build book/_generated build dist out .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo '$(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) .
	@touch $@

.venv/ready-%: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[$*]'
	@touch $@
