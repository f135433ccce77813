# Everything runs in .venv, which any of these makes on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test nightly newest oldest check bench models viewer wheel clean

help:
	@echo "make demo    capture and draw a real 135M-parameter model: demo/run.zarr, demo/pictures"
	@echo "make test    all tests but the nightly ones"
	@echo "make nightly the long ones: what make test leaves out, and more kills"
	@echo "make newest  capture, store and render tests on the newest Python here, with the newest packages"
	@echo "make oldest  the same with the lowest versions that pyproject.toml admits; torch 2.6.0 may be gigabytes"
	@echo "make check   ruff, formatting, strict types"
	@echo "make bench   time and memory against plain generation"
	@echo "make viewer  the page of lens view, from its sources (needs node)"
	@echo "make models  every causal language model of transformers, small, through capture: docs/models.md"
	@echo "make wheel   dist/*.whl"
	@echo "make clean   remove what the others made"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "attnlens needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (once, a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[capture,xarray,test,check]'
	@touch $@

demo: $(READY)
	@$(BIN)/lens demo -o demo

test: $(READY)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(READY)
	@ATTNLENS_KILLS=20 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m '(nightly or slow) and not gpu'

# What the package promises of versions; a warning of theirs is no failure there, but `make test` has none.
VERSIONS_TESTS = tests/test_capture_[!c]*.py tests/test_models_gguf.py tests/test_models_hub.py tests/test_models_adapters.py \
  tests/test_store_*.py tests/test_stores_archive.py tests/test_render_*.py
VERSIONS_RUN = -m pytest -q -n 2 --dist loadfile -o filterwarnings=default $(VERSIONS_TESTS)

newest: $(READY)
	@found=$$($(BIN)/python .ci/newest.py); set -x; rm -rf .venv-newest; $${found:-$(BIN)/python} -m venv .venv-newest
	@.venv-newest/bin/python -m pip install -qq -e '.[capture,test]'
	@.venv-newest/bin/python $(VERSIONS_RUN)

oldest: $(READY)
	@rm -rf .venv-oldest; $(PYTHON) -m venv .venv-oldest
	@$(BIN)/python .ci/lowest.py --torch >.venv-oldest/lowest.txt; cat .venv-oldest/lowest.txt
	@.venv-oldest/bin/python -m pip install -qq -c .venv-oldest/lowest.txt -e '.[capture,test]'
	@.venv-oldest/bin/python $(VERSIONS_RUN)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[bench]'
	@for file in benchmarks/*.py; do echo "--- $$file"; $(BIN)/python $$file || exit 1; done

viewer: $(READY) render/js/node_modules/.package-lock.json
	@$(BIN)/python -m attnlens.render.viewer.contract
	@cd render/js && node build.mjs

render/js/node_modules/.package-lock.json: render/js/package-lock.json
	@cd render/js && npm ci --no-audit --no-fund --silent
	@touch $@

models: $(READY)
	@$(BIN)/python -m attnlens.benchmarks.models

wheel: $(READY)
	@rm -rf dist
	@$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv-* render/js/node_modules demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
