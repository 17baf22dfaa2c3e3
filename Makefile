# make demo | test | test-all | bench | kernels-report | lint | format | clean
# Each makes a virtual environment in .venv first, if there is none, and rebuilds what changed under csrc/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --quiet --disable-pip-version-check
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' -o -name '*.inl')
CPP := $(NATIVE) $(shell find tests -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-all bench kernels-report lint format clean

demo: $(VENV)/installed
	$(BIN)/sparsekern train lenet5-digits --overwrite

# Workers share the cores, so a thread that waits must not spin.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist loadfile

test: $(VENV)/installed
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/installed
	$(PYTEST)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

kernels-report: $(VENV)/installed
	$(BIN)/python -m benchmarks.kernels_report

lint: $(VENV)/tools
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/tools
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks sparsekern/_C*.so $(VENV)/installed
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/tools: requirements-dev.txt
	@echo "Making $(VENV): PyTorch and tools, some minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -r requirements-dev.txt
	@touch $@

$(VENV)/installed: $(VENV)/tools setup.py pyproject.toml $(NATIVE)
	@echo "Building sparsekern, about half a minute"
	$(PIP) install --no-compile --no-build-isolation -e '.[dev,train]'
	@touch $@
