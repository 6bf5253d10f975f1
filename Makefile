# Every target sets up what it needs first; `make` alone lists them.

BIN := .venv/bin
CAPTURE := examples/tunnels.pcap
PICKED := build/picked.pcap

.PHONY: help setup demo check format test check-walk bench clean

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

check-walk: setup  ## many filters, run in every way there is, on 200,000 packets; takes ten minutes on two cores
	PCAPEXT_TEST_EFFORT=200 $(BIN)/python -m pytest -n auto tests/test_everywhere.py tests/test_kernel.py

bench: setup  ## how fast, beside libpcap, tcpdump and Python's libraries; takes eight minutes and 6 GB in build/bench
	@$(BIN)/python -c 'import cypcap, dpkt, pcapy, scapy' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks

clean:  ## remove what the other targets made, but for .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
