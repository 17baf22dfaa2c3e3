# make demo | test | test-all | sanitize | fuzz | bench | kernels-report | lint | format | clean
# Each makes a virtual environment in .venv first, if there is none, and rebuilds what changed under csrc/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --quiet --disable-pip-version-check
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' -o -name '*.inl')
CPP := $(NATIVE) $(shell find tests -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-all sanitize fuzz bench kernels-report lint format clean

demo: $(VENV)/installed
	$(BIN)/sparsekern train lenet5-digits --overwrite

# Workers share the cores, so a thread that waits must not spin.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist loadfile

test: $(VENV)/installed
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/installed
	$(PYTEST)

# The fuzz tests of the extension with its CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer. Both
# have to be there before Python is, and libstdc++ for exceptions; what Python leaks is of no interest. They run
# without torch: the folder with the sanitized extension is found before the package.
LIBRARY = $$(g++ -print-file-name=$(1))
SANITIZED := LD_PRELOAD="$(call LIBRARY,libasan.so) $(call LIBRARY,libubsan.so) $(call LIBRARY,libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024 \
	UBSAN_OPTIONS=print_stacktrace=1 \
	$(BIN)/python -m pytest -q -o pythonpath='build/sanitize .' --capture=sys -p no:faulthandler -p no:cacheprovider \
	-n auto --dist loadfile

sanitize: build/sanitize/passed

build/sanitize/built: $(VENV)/installed setup.py $(NATIVE)
	$(BIN)/python setup.py -q build_ext --sanitize --build-lib build/sanitize
	@touch build/sanitize/sparsekern/__init__.py $@

build/sanitize/passed: build/sanitize/built $(wildcard tests/csrc/*.py)
	$(SANITIZED) tests/csrc
	@touch $@

SECONDS := 600
fuzz: build/sanitize/built
	end=$$(($$(date +%s) + $(SECONDS))); while [ $$(date +%s) -lt $$end ]; do \
	$(SANITIZED) --hypothesis-profile=many tests/csrc || exit 1; done

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
	rm -rf build dist *.egg-info .hypothesis .pytest_cache .ruff_cache .benchmarks sparsekern/_C*.so $(VENV)/installed
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
