# Every target sets up what it needs first; `make` alone lists them.

BIN := .venv/bin
CAPTURE := examples/tunnels.pcap
PICKED := build/picked.pcap
ENGINE := $(wildcard pcapext/engine/*.[ch])
FUZZERS := $(patsubst fuzz/%.c,build/fuzz/%,$(wildcard fuzz/*.c))
FUZZ_SECONDS ?= 60
# A Python that has the engine; there is no .venv where `make sanitize` works.
TABLES_PYTHON ?= $(BIN)/python

.PHONY: help setup demo check format test check-walk sanitize fuzz bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 16

setup:  ## missing Debian packages, and a virtual environment in .venv
	@./setup.sh

demo: setup  ## compile a filter, and run it over a capture with tunnels
	@mkdir -p build
	@echo; echo '# A filter for HTTP, however deep in tunnels, as a program with flow keys:'
	$(BIN)/pcapext compile 'inner tcp port 80'
	@echo; echo '# What it does on a capture of many tunnels. All packets, those that tcpdump would pick, those that pcapext picks:'
	$(BIN)/pcapext filter -r $(CAPTURE) --count
	$(BIN)/pcapext filter -r $(CAPTURE) --count 'tcp port 80'
	$(BIN)/pcapext filter -r $(CAPTURE) --count 'inner tcp port 80'
	@echo; echo '# The same packets to a file, and where their innermost headers are:'
	$(BIN)/pcapext filter -r $(CAPTURE) -w $(PICKED) 'inner tcp port 80'
	$(BIN)/pcapext keys -r $(PICKED)

check: setup  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup  ## put the sources in ruff's format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test: setup check  ## every check and test; as root, those that need root too
	$(BIN)/python -m pytest -n auto

check-walk: setup  ## many filters, run in every way there is, on 100,000 packets and more; takes half an hour on two cores
	PCAPEXT_TEST_EFFORT=200 $(BIN)/python -m pytest -n auto tests/test_everywhere.py tests/test_kernel.py tests/test_dissector_calls.py \
	    tests/test_ebpf.py::test_verdicts tests/test_ebpf_walk.py tests/test_write_c.py::test_the_walk_is_the_reference_walk

# A copy of everything, with an engine of its own: PYTHONPATH puts it before the one that .venv knows of, in subprocesses too.
# What a sanitizer says goes to a file, since a test may take a subprocess that ends so for one that fails as it should.
SANITIZED := $(CURDIR)/build/sanitize
SANITIZER := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZER_OPTIONS := detect_leaks=0:print_stacktrace=1:log_path=$(SANITIZED)/report
# It starts Python where /etc is another folder, and with the sanitizer's libraries the names of the C library fail there.
SANITIZER_LEFT_OUT := --deselect tests/test_names.py::test_names_of_a_system_with_many
sanitize: setup  ## every test, with an engine that looks out for memory and arithmetic that go wrong; TESTS are others to run
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(SANITIZED)
	cd $(SANITIZED) && CC=gcc CFLAGS='$(SANITIZER)' LDFLAGS='$(SANITIZER)' $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && export PYTHONPATH=$(SANITIZED):$(SANITIZED)/tools/sanitizers PYTHONMALLOC=malloc \
	    PCAPEXT_SANITIZERS="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=$(SANITIZER_OPTIONS) UBSAN_OPTIONS=$(SANITIZER_OPTIONS) && \
	$(CURDIR)/$(BIN)/python -c 'from pcapext.engine import _engine; assert _engine.__file__.startswith("$(SANITIZED)"), _engine.__file__' && \
	$(CURDIR)/$(BIN)/python -m pytest -n auto $(SANITIZER_LEFT_OUT) $(TESTS); \
	status=$$?; ! cat $(SANITIZED)/report.* 2>/dev/null && exit $$status

fuzz: setup $(FUZZERS)  ## fuzz the engine, each target for FUZZ_SECONDS (60); what is found is put into build/fuzz
	for target in $(FUZZERS); do \
	    mkdir -p $$target-corpus && \
	    $$target -timeout=10 -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$$target- $$target-corpus fuzz/corpus/$${target##*/} || exit; \
	done

build/fuzz/%: fuzz/%.c fuzz/fuzz.h $(ENGINE)
	@mkdir -p build/fuzz
	clang -std=gnu11 -D_GNU_SOURCE -Ipcapext/engine -O1 -g -Wall -Wextra \
	    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ $(filter %.c,$^)

build/fuzz/walk: build/fuzz/tables
build/fuzz/tables: fuzz/tables.py pcapext/encapsulation.py pcapext/engine/walk.py pcapext/engine/engine.h
	@mkdir -p build/fuzz
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=.:$$PYTHONPATH $(TABLES_PYTHON) fuzz/tables.py $@

bench: setup  ## how fast, beside libpcap, tcpdump and Python's libraries; takes eight minutes and 6 GB in build/bench
	@$(BIN)/python -c 'import cypcap, dpkt, pcapy, scapy' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks

clean:  ## remove what the other targets made, but for .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
