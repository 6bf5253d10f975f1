#!/bin/sh
# Makes this folder ready to run, test and change pcapext. To be run as often as you like: what is there is left alone.
#
#   ./setup.sh                      a virtual environment in .venv, from python3
#   PYTHON=python3.12 ./setup.sh    from another Python (read only while there is no .venv)
#
# On Debian and its relatives it also installs what the engine is built with, a C compiler and Python's headers; and what the
# tests and the capture libraries need: clang, which fuzzes the engine and makes eBPF of filters in C, bpftool, g++, libpcap's headers,
# tcpdump, tshark, iproute2, iptables, zstd, lz4, and netbase for names like `port http`. Elsewhere it says what is missing.
set -eu
cd "$(dirname "$0")"
PATH=$PATH:/usr/sbin:/sbin # where ip and tcpdump may be, and a user's PATH may not look
python=${PYTHON:-python3}
venv=.venv

say() { echo "setup: $*" >&2; }

# pip comes last: without it, an earlier run was cut off. A Python that moved or went leaves links to nothing.
usable() { [ -x $venv/bin/pip ] && $venv/bin/python -c '' 2>/dev/null; }

if ! usable && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    say "$python is not Python 3.10 or later; name one: PYTHON=python3.12 $0"
    exit 1
fi

# Whether the Python that the engine is built for has its headers.
headers() {
    if usable; then set -- $venv/bin/python; else set -- "$python"; fi
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

# The Debian packages whose programs or files are not here.
missing() {
    command -v cc >/dev/null && [ -e /usr/include/stdio.h ] || echo gcc libc6-dev
    headers || echo "${python##*/}-dev"
    command -v clang >/dev/null && [ -e "$(clang -print-runtime-dir)/libclang_rt.fuzzer-$(uname -m).a" ] || echo clang libclang-rt-dev
    command -v c++ >/dev/null || echo g++
    command -v bpftool >/dev/null || echo bpftool
    [ -e /usr/include/pcap/pcap.h ] || echo libpcap-dev
    command -v tcpdump >/dev/null || echo tcpdump
    command -v tshark >/dev/null || echo tshark
    command -v ip >/dev/null || echo iproute2
    command -v iptables >/dev/null || echo iptables
    command -v zstd >/dev/null || echo zstd
    command -v lz4 >/dev/null || echo lz4
    # The names of ports and protocols.
    [ -e /etc/services ] && [ -e /etc/protocols ] || echo netbase
    # Debian's Python comes without what makes an environment with pip in it.
    usable || "$python" -c 'import ensurepip' 2>/dev/null || echo "${python##*/}-venv"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# noninteractive: tshark would ask who may capture.
install() {
    as_root apt-get -q update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends "$@"
}

packages=$(missing | xargs)
if [ -n "$packages" ]; then
    say "missing: $packages"
    if ! command -v apt-get >/dev/null; then
        say "no apt-get on this system: install what Debian calls by these names by hand"
    elif [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        say "neither root nor sudo: have root run apt-get install $packages"
    else
        # shellcheck disable=SC2086  # a list of words
        install $packages || say "apt-get failed; the tests that need these will say so"
    fi
fi

usable || "$python" -m venv --clear $venv

# The copy is the stamp: an environment belongs to what it was made from, and so does the engine in it.
made_from() { cat pyproject.toml setup.py pcapext/engine/build.py pcapext/engine/*.[ch]; }
if ! made_from | cmp -s - $venv/made-from || ! ls pcapext/engine/_engine.*.so >/dev/null 2>&1; then
    $venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    made_from >$venv/made-from
fi
