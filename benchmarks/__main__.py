"""`python -m benchmarks [NAME...]`: run the benchmarks of these names, or all, and print a table for each."""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import benchmarks.dissector
import benchmarks.files
import benchmarks.native  # noqa: F401  (these register their benchmarks)
import pcapext
from benchmarks import BENCHMARKS, EXTENDED, LINKTYPE, PCAPEXT, PLAIN, PYTHON, SNAPLEN, Contestants, benchmark, process
from benchmarks.counts import counting
from pcapext import Program
from pcapext.pcap_bridge import compile_expression, libpcap
from pcapext.prove import longest_way


@benchmark(rounds=31)
def import_time() -> Contestants:
    return {
        "import pcapext": process(PYTHON, "-c", "import pcapext"),
        "Python alone": process(PYTHON, "-c", "pass"),
    }


@benchmark(rounds=31)
def compile_process() -> Contestants:
    return {
        f"pcapext compile '{EXTENDED}'": process(PCAPEXT, "compile", EXTENDED),
        f"pcapext compile '{PLAIN}'": process(PCAPEXT, "compile", PLAIN),
        "Python alone": process(PYTHON, "-c", "pass"),
        f"tcpdump -d '{PLAIN}'": process("tcpdump", "-d", "-y", LINKTYPE, "-s", str(SNAPLEN), PLAIN),
    }


@benchmark(rounds=1001)
def compile_plain() -> Contestants:
    return {
        f"pcapext.compile('{PLAIN}')": lambda: pcapext.compile(PLAIN, linktype=LINKTYPE, snaplen=SNAPLEN),
        f"pcap_compile('{PLAIN}')": lambda: compile_expression(PLAIN, linktype=LINKTYPE, snaplen=SNAPLEN),
    }


@benchmark(rounds=201)
def compile_extended() -> Contestants:
    return {
        f"pcapext.compile('{EXTENDED}')": lambda: pcapext.compile(EXTENDED, linktype=LINKTYPE, snaplen=SNAPLEN),
        f"pcap_compile('{PLAIN}')": lambda: compile_expression(PLAIN, linktype=LINKTYPE, snaplen=SNAPLEN),
    }


def hosts(count: int) -> str:
    """So many addresses, of which no two are neighbours, with `or` between them."""
    numbers = Random(count).sample(range(1 << 24, 224 << 24, 2), count)
    return " or ".join(str(IPv4Address(number)) for number in numbers)


def host_lists(count: int) -> tuple[str, str]:
    """A list of hosts, and one of IPv4 hosts, which libpcap's optimizer takes more of."""
    return f"host {hosts(count)}", f"ip host {hosts(count).replace('or', 'or ip host')}"


@benchmark(rounds=5)
def compile_1000_hosts() -> Contestants:
    listed = hosts(1000)
    return {
        "pcapext.compile('inner host ... or ...')": lambda: pcapext.compile(f"inner host {listed}", linktype=LINKTYPE, snaplen=SNAPLEN),
        # Its optimizer does not take so long a filter.
        "pcap_compile('host ... or ...'), without -O": lambda: compile_expression(f"host {listed}", LINKTYPE, SNAPLEN, optimize=False),
    }


@benchmark(rounds=5)
def compile_1000_hosts_further() -> Contestants:
    plain, ipv4 = host_lists(1000)
    return {
        "pcapext.compile('host ... or ...', optimize=2)": lambda: pcapext.compile(plain, linktype=LINKTYPE, snaplen=SNAPLEN, optimize=2),
        "pcapext.compile('ip host ... or ...', optimize=2)": lambda: pcapext.compile(ipv4, linktype=LINKTYPE, snaplen=SNAPLEN, optimize=2),
        "pcap_compile('ip host ... or ...')": lambda: compile_expression(ipv4, LINKTYPE, SNAPLEN),
    }


def in_turn(compile_filter: Callable[[str], object], pattern: str) -> Callable[[], object]:
    """A contestant that compiles another filter of one shape each time, with another port and another address."""
    numbers = itertools.count(1)

    def run() -> None:
        number = next(numbers)
        compile_filter(pattern.format(port=number, host=IPv4Address(0x0A000000 + number)))

    return run


@benchmark(rounds=31)
def compile_classic() -> Contestants:
    def own(expression: str) -> Program:
        return pcapext.compile(expression, linktype=LINKTYPE, snaplen=SNAPLEN, target="classic")

    def peer(expression: str) -> object:
        return compile_expression(expression, linktype=LINKTYPE, snaplen=SNAPLEN)

    patterns = ("inner tcp port {port} and not host {host}", "host {host} and inner tcp port {port}")
    plain = "tcp port {port} and not host {host}"
    return {
        **{f"classic: '{pattern}'": in_turn(own, pattern) for pattern in patterns},
        f"pcap_compile('{plain}')": in_turn(peer, plain),
    }


@counting
def instructions() -> Mapping[str, Program]:
    return {
        f"classic: '{EXTENDED}'": pcapext.compile(EXTENDED, linktype=LINKTYPE, snaplen=SNAPLEN, target="classic"),
        f"flowkeys: '{EXTENDED}'": pcapext.compile(EXTENDED, linktype=LINKTYPE, snaplen=SNAPLEN),
        f"libpcap: '{PLAIN}'": pcapext.compile(PLAIN, linktype=LINKTYPE, snaplen=SNAPLEN),
    }


@counting
def instructions_1000_hosts() -> Mapping[str, Program]:
    """With the most that a packet can execute."""
    plain, ipv4 = host_lists(1000)
    programs = {
        "-O2: 'host'": pcapext.compile(plain, linktype=LINKTYPE, snaplen=SNAPLEN, optimize=2),
        "-O2: 'ip host'": pcapext.compile(ipv4, linktype=LINKTYPE, snaplen=SNAPLEN, optimize=2),
        "libpcap: 'ip host'": pcapext.compile(ipv4, linktype=LINKTYPE, snaplen=SNAPLEN),
    }
    return {f"{name}, at most {longest_way(program)}": program for name, program in programs.items()}


def machine() -> str:
    """When and on what this runs."""
    cpus = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE) or [platform.machine()]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{datetime.date.today()}, {cpus[0]}, {len(os.sched_getaffinity(0))} cores, {system}, {libpcap().version}"


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - BENCHMARKS.keys())
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    # As where it is installed: each module is compiled once, not at every start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(machine(), end="\n\n", flush=True)
    for name in names or BENCHMARKS:
        print(BENCHMARKS[name].report(), end="\n\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
