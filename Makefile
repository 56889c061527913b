# Every target is complete from a bare clone: Python 3.11+, a C++ compiler and a package index are enough.
PYTHON ?= python3
VENV := .venv
# Tests side by side; most are one thread in Triton's interpreter.
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt
SANITIZED := tests/test_build.py tests/test_metrics*.py tests/test_detections.py tests/test_heads.py \
  tests/ops/test_native_*.py tests/ops/test_nms.py tests/ops/test_proposals.py tests/ops/test_golden.py
NATIVE := setup.py CMakeLists.txt pyproject.toml case/_C.pyi $(wildcard csrc/*)

.PHONY: help venv test sanitize demo bench bench-results clean
.DEFAULT_GOAL := help

help:
	@echo "make venv    create $(VENV) with everything pinned in constraints.txt, and case itself, editable"
	@echo "make test    lint, types and tests"
	@echo "make sanitize  the C++ code under AddressSanitizer and UBSan"
	@echo "make demo    train, evaluate and draw on embedded data"
	@echo "make bench   every op, training and evaluation beside their peers and the machine's limits, in some minutes"
	@echo "make bench-results  all sizes and scaling as well, into benchmarks/results and BENCHMARKS.md"
	@echo "make clean   remove what was built and $(VENV)"
	@echo "PYTHON=python3.12 chooses the interpreter; CASE_BUILD_CUDA=0 builds without nvcc; see setup.py for the rest"

# The build tools are installed first and used without isolation, so that they are pinned as well and torch stays out.
# --no-compile: Python compiles what is imported, on its first import, instead of all of torch at once.
$(VENV)/.deps: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "case needs Python 3.11 or newer, got " + sys.version.split()[0] + "; make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel pybind11 cmake ninja
	@touch $@

$(VENV)/.installed: $(VENV)/.deps $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) 'case-wtal[test]'
	@touch $@

venv: $(VENV)/.tested

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS) --timeout 300 --color=no

# The C++ half again with AddressSanitizer and UBSan, and the tests that call it. Leaks are not looked for: Python has its
# own. The sanitizer's library has to come first in a process, hence LD_PRELOAD.
sanitize: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DCASE_SANITIZE=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" > /dev/null
	$(BIN)/ninja -C build/sanitize
	CASE_NATIVE=$$(echo $(CURDIR)/build/sanitize/_C*.so) LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python -m pytest $(SANITIZED) -k "not triton and not compile and not cuda" --timeout 1200 --color=no

demo: $(VENV)/.installed
	$(BIN)/case demo

$(VENV)/.peers: $(VENV)/.tested
	$(PIP) 'case-wtal[peers]'
	@touch $@

# Each stage keeps what it has found; a machine's results are a folder of their own.
bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks.run build/bench --quick
	$(BIN)/python -m benchmarks.report --results build/bench --out build/bench/BENCHMARKS.md --print

bench-results: $(VENV)/.peers
	$(BIN)/python -m benchmarks.run benchmarks/results
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist *.egg-info case/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find case kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
