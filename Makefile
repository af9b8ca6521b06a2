# Everything happens in .venv/ of this repository; a stamp says what is installed there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet \
	--constraint constraints.txt --editable
PYTEST := $(BIN)/python -m pytest $(PYTEST_FLAGS)
# Beside them are their parts. The peer's is downloaded, and the results take hours, so
# both are asked for by name.
BENCHMARKS := $(filter-out $(addprefix benchmarks/,chaos_%.py custody_%.py mirror_%.py \
	rounds_%.py flower%.py results%.py reporting.py scene.py turns.py), $(wildcard benchmarks/*.py))

.PHONY: demo test test-long check lint types imports format dev bench bench-peer results clean tools

demo: $(VENV)/.with-demo
	$(BIN)/cloister demo $(DEMO_FLAGS)

test: $(VENV)/.with-dev tools
	$(PYTEST)

test-long: $(VENV)/.with-dev tools
	$(PYTEST) -m long

check: lint types imports

lint: $(VENV)/.with-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	! grep -rnE 'add_insecure_port|insecure_channel' src

types: $(VENV)/.with-dev
	$(BIN)/mypy

imports: $(VENV)/.with-dev
	$(BIN)/lint-imports

format: $(VENV)/.with-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

dev: $(VENV)/.with-dev tools

bench: $(VENV)/.with-dev
	@set -e; for benchmark in $(BENCHMARKS); do $(BIN)/python $$benchmark; done

bench-peer: $(VENV)/.with-dev
	$(BIN)/python benchmarks/flower.py

# Writes docs/results.md. RESULTS_FLAGS="--only NAME", "--data DIR", "--quick".
results: $(VENV)/.with-dev
	$(BIN)/python benchmarks/results.py $(RESULTS_FLAGS)

# The tests ask two public programs whether they read what we write: age opens a sealed
# model, openssl reads certificates. libpmem keeps states in what it takes for persistent
# memory, and ip gives each node a network of its own. Only root can install them.
tools:
	@if ! { command -v age && command -v openssl && command -v ip && \
		$(PYTHON) -c 'import ctypes; ctypes.CDLL("libpmem.so.1")'; } >/dev/null 2>&1 \
		&& [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends age openssl libpmem1 iproute2; fi

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Cloister needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.with-demo: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) '.[torch,digits]'
	@touch $@

$(VENV)/.with-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) '.[dev]'
	@touch $@ $(VENV)/.with-demo

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
