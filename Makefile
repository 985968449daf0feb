# `make quickstart` runs the quickstart, `make test` the tests, `make test-all` also the slow ones.
# They create .venv first. PYTHON sets the interpreter (3.11 to 3.13), EXTRAS adds extras of
# pyproject.toml (gpu, tpu, wandb).

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
EXTRAS ?=
COMMA := ,
BIN := .venv/bin
# uv takes a third of pip's time. pip installs where uv cannot, such as where pip alone knows the
# package index. Modules are compiled when they are first imported: most never are.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
UV := UV_HTTP_TIMEOUT=20 UV_HTTP_RETRIES=1 $(BIN)/uv pip install --quiet --python $(BIN)/python
install = $(UV) --editable $(1) 2> /dev/null || $(PIP) --editable $(1)
TEST := $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all test-venv lint docs venv clean

quickstart: venv
	$(BIN)/python -m p2o_jax.main --config configs/quickstart.py

test: .venv/test-$(EXTRAS)
	$(TEST)

test-all: .venv/test-$(EXTRAS)
	$(TEST) -m "slow or not slow"

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/docs
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

venv: .venv/base-$(EXTRAS)

test-venv: .venv/test-$(EXTRAS)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	-$(PIP) uv

.venv/base-$(EXTRAS): .venv/bin/python pyproject.toml
	$(call install,'.$(if $(EXTRAS),[$(EXTRAS)])')
	@touch $@

.venv/test-$(EXTRAS): .venv/bin/python pyproject.toml
	$(call install,'.[test$(if $(EXTRAS),$(COMMA)$(EXTRAS))]')
	@touch $@

.venv/lint: .venv/bin/python pyproject.toml
	$(call install,'.[lint]')
	@touch $@

.venv/docs: .venv/bin/python pyproject.toml
	$(call install,'.[docs]')
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info
