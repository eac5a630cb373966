# SPDX-License-Identifier: Apache-2.0
# One command each; the work is in scripts/. Stamp files make a second run start at once.

VENV ?= .venv
WERROR ?= OFF
# Seconds that each fuzzer runs.
FUZZ_SECONDS ?= 30
export VENV WERROR

STAMPS := $(VENV)/stamps
BUILT := build/stamps
PYTHON := $(VENV)/bin/python
WOQ_SOURCES := $(shell find CMakeLists.txt pyproject.toml README.md cmake include src python/woq \
  -type f -not -path '*/__pycache__/*')
LANGCHAIN_SOURCES := $(shell find python/langchain-woq -name '*.py' -o -name pyproject.toml)

.PHONY: demo wheel test test-cpp test-python test-emulated test-all check docs bench sanitize fuzz \
  format clean
.DELETE_ON_ERROR:

demo: $(STAMPS)/model $(BUILT)/woq $(BUILT)/langchain-woq
	$(PYTHON) -m woq.demo

wheel: $(STAMPS)/test $(BUILT)/woq
	scripts/make_wheel.sh

test: test-cpp test-python

test-cpp: $(STAMPS)/build
	scripts/test_cpp.sh build/cpp
	scripts/test_emulated.sh
	scripts/test_emulated_amx.sh

test-python: $(STAMPS)/model $(STAMPS)/test $(BUILT)/woq $(BUILT)/langchain-woq
	WOQ_WHEEL=$$(echo build/wheel/woq-*.whl) $(PYTHON) -m pytest tests/python
	cd python/langchain-woq && $(abspath $(PYTHON)) -m pytest tests

test-emulated: $(STAMPS)/build
	scripts/test_emulated.sh --force
	scripts/test_emulated_amx.sh

test-all: test
	scripts/test_all.sh

check: $(STAMPS)/build $(STAMPS)/check docs
	scripts/check.sh

# The reference is made from the installed package's docstrings, so the package is needed.
docs: $(STAMPS)/docs $(STAMPS)/model $(BUILT)/woq
	scripts/build_docs.sh

# Wants a machine that does nothing else.
bench: $(STAMPS)/build
	scripts/bench.sh build/bench

# GCC with AddressSanitizer and UBSan, Clang as a compiler, Clang with ThreadSanitizer, fuzzers.
# -O1: instrumented kernels take GCC four times as long with -O2. Assertions stay on.
sanitize: $(STAMPS)/build
	scripts/test_cpp.sh build/sanitize -DWOQ_SANITIZE=address,undefined,float-cast-overflow \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1
	scripts/test_clang.sh
	scripts/test_threads.sh
	scripts/fuzz.sh $(FUZZ_SECONDS)

fuzz: $(STAMPS)/build
	scripts/fuzz.sh $(FUZZ_SECONDS)

format: $(STAMPS)/check
	scripts/check.sh --fix

clean:
	rm -rf build

# A group's stamp is younger than what the group is made from.
$(STAMPS)/%: pyproject.toml scripts/install_group.sh scripts/common.sh
	scripts/install_group.sh $*
	@mkdir -p $(@D) && touch $@

$(BUILT)/woq: $(STAMPS)/build $(WOQ_SOURCES)
	scripts/install_woq.sh
	@mkdir -p $(@D) && touch $@

$(BUILT)/langchain-woq: $(LANGCHAIN_SOURCES)
	$(PYTHON) -m pip install -q --no-deps --force-reinstall ./python/langchain-woq
	@mkdir -p $(@D) && touch $@
