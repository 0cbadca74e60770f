# Each target makes the environment it needs; a second run finds it made. `make` alone lists the targets.
#
#   PYTHON    the interpreters to try, in this order; the first that is 3.11 or later and can make a venv is taken
#   VENV      the environment of development; PEER_VENV: the one with scvi-tools
#   WORKERS   processes of pytest;  ARGS: further arguments of pytest or of the benchmarks, as in `make test ARGS="-k decode"`

PYTHON ?= python3.11 python3.12 python3.13 python3
VENV ?= .venv
PEER_VENV ?= .venv-peer
WORKERS ?= 2
ARGS ?=

PIP = -m pip --disable-pip-version-check --no-input
BUILD_TOOLS = hatchling editables
PEER_TOOLS = pytest pytest-xdist hypothesis
PYTEST = -m pytest -q

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-peer check format bench coverage build constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed  ## cells of two fates to a model, paths and their genes, with pictures, in demo/
	$(VENV)/bin/scdecode demo --out demo --overwrite

test: $(VENV)/.installed  ## all tests but those against scvi-tools
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -n $(WORKERS) --ignore=tests/peer tests $(ARGS)

test-peer: $(PEER_VENV)/.installed  ## the comparisons with real scvi-tools
	$(PEER_VENV)/bin/python $(PYTEST) -W default tests/peer $(ARGS)

check: $(VENV)/.installed  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed  ## put the code into its format and mend what the linter can
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

bench: $(PEER_VENV)/.installed  ## speed and memory beside scvi-tools, as ratios
	$(PEER_VENV)/bin/python benchmarks/run.py $(ARGS)

coverage: $(VENV)/.installed  ## the tests, with the lines that none of them reaches
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -n $(WORKERS) --ignore=tests/peer --cov=scdecode tests $(ARGS)

build: $(VENV)/.installed  ## wheel and sdist in dist/, and an import from the wheel
	rm -rf dist
	$(VENV)/bin/python -m hatchling build -d dist
	$(VENV)/bin/python $(PIP) install -qq --no-deps --target dist/unpacked dist/*.whl
	PYTHONPATH=dist/unpacked $(VENV)/bin/python -c "import scdecode; print(scdecode.__file__); assert 'unpacked' in scdecode.__file__"
	PYTHONPATH=dist/unpacked $(VENV)/bin/python -m scdecode --help > dist/help.txt
	rm -rf dist/unpacked dist/help.txt

clean:  ## remove the environments and everything made
	rm -rf $(VENV) $(PEER_VENV) .venv-constraints demo dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter of $(PYTHON) that will do, as the shell variable `python`. It is run, not looked up: a pyenv shim may
# exist and fail, and Debian's python3 comes without ensurepip.
define FIND_PYTHON
python=; for name in $(PYTHON); do \
	if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$name; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "scdecode needs Python 3.11 or later with the venv module (Debian and Ubuntu: apt install python3-venv); tried: $(PYTHON)." >&2; \
	echo "If it is elsewhere: make PYTHON=/path/to/python ..." >&2; exit 1; \
fi
endef

# $(call INSTALL,venv,packages): torch and the build tools first, so that scdecode builds with the pinned ones.
define INSTALL
@if ! $(1)/bin/python -c 'import pip' >/dev/null 2>&1; then \
	$(FIND_PYTHON); echo "making $(1) with $$("$$python" --version)"; "$$python" -m venv --clear $(1) || exit 1; \
fi
@echo "installing into $(1): a minute or two the first time"
@$(1)/bin/python $(PIP) install -qq -c constraints.txt torch $(BUILD_TOOLS)
@$(1)/bin/python $(PIP) install -qq -c constraints.txt --no-build-isolation $(2)
@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call INSTALL,$(VENV),-e '.[dev]')

$(PEER_VENV)/.installed: pyproject.toml constraints.txt
	$(call INSTALL,$(PEER_VENV),-e '.[peer]' $(PEER_TOOLS))

constraints:  ## resolve both extras anew into constraints.txt, at its version of torch
	@$(FIND_PYTHON); "$$python" -m venv --clear .venv-constraints
	.venv-constraints/bin/python $(PIP) install -qq "$$(grep '^torch==' constraints.txt)" $(BUILD_TOOLS)
	.venv-constraints/bin/python $(PIP) install -qq --no-build-isolation -e '.[dev,peer]' "$$(grep '^torch==' constraints.txt)"
	.venv-constraints/bin/python $(PIP) check
	grep '^#' constraints.txt > .venv-constraints/new
	.venv-constraints/bin/python $(PIP) freeze --all --exclude-editable --exclude pip | sed 's/+.*//' >> .venv-constraints/new
	mv .venv-constraints/new constraints.txt
	rm -rf .venv-constraints
