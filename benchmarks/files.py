"""How fast captures are filtered: on one core and two, beside tcpdump, libpcap's own loop, tshark and Python's libraries.

In:  the captures of captures.py, which are in the page cache after the first round.
Out: benchmarks.

Who has "one core" in its name is bound to the first one, and so is every peer that uses one anyway.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pcapext
from benchmarks import EXTENDED, LINKTYPE, PCAPEXT, PLAIN, PYTHON, SNAPLEN, Contestants, medians, process, race, reporting
from benchmarks.captures import FOLDER, GROWING, HALF, MILLION, PLAIN_MIX, SMALL, TUNNELS_MIX, Capture
from pcapext.capture import open_offline
from pcapext.filtering import count
from pcapext.pcap_bridge import libpcap

ONE_CORE = ("taskset", "-c", "0")
NOWHERE = "/dev/null"
OUTPUT = FOLDER / "out.pcap"
#: What every packet matches.
ANY = "greater 1"


def pcapext_filter(file: Path, expression: str, output: str = NOWHERE) -> tuple[str, ...]:
    return (PCAPEXT, "filter", "-r", str(file), "-w", output, expression)


def tcpdump(file: Path, expression: str, output: str = NOWHERE) -> tuple[str, ...]:
    """With -Z, root stays root and can write where we do."""
    return ("tcpdump", "-Z", "root", "-r", str(file), "-w", output, expression)


def loop(file: Path, expression: str, *output: str) -> tuple[str, ...]:
    """loop.c, compiled."""
    source, program = Path(__file__).with_name("loop.c"), FOLDER / "loop"
    FOLDER.mkdir(parents=True, exist_ok=True)
    process("cc", "-O2", "-o", str(program), str(source), "-lpcap")()
    return (str(program), str(file), expression, *output)


def beside_tcpdump(file: Path, expression: str, output: str = NOWHERE) -> dict[str, Callable[[], object]]:
    """pcapext on one core and on two, and tcpdump with its plain expression."""
    plain = expression.removeprefix("inner ")
    return {
        f"tcpdump '{plain}'": process(*ONE_CORE, *tcpdump(file, plain, output)),
        f"pcapext '{expression}', one core": process(*ONE_CORE, *pcapext_filter(file, expression, output)),
        f"pcapext '{expression}', two cores": process(*pcapext_filter(file, expression, output)),
    }


@race(rounds=7, each=PLAIN_MIX.packets)
def filter_plain() -> Contestants:
    file = PLAIN_MIX.file()
    return {
        **beside_tcpdump(file, PLAIN),
        "libpcap's loop, counting": process(*ONE_CORE, *loop(file, PLAIN)),
        "libpcap's loop, pcap_dump": process(*ONE_CORE, *loop(file, PLAIN, NOWHERE)),
    }


@race(rounds=7, each=TUNNELS_MIX.packets)
def filter_inner() -> Contestants:
    return beside_tcpdump(TUNNELS_MIX.file(), EXTENDED)


def written(returned: object) -> int:
    """How long the output is; it is removed."""
    size = OUTPUT.stat().st_size
    OUTPUT.unlink()
    return size


@race(rounds=7, each=PLAIN_MIX.packets, result=written)
def write_some() -> Contestants:
    return beside_tcpdump(PLAIN_MIX.file(), PLAIN, str(OUTPUT))


@race(rounds=7, each=PLAIN_MIX.packets, result=written)
def write_all() -> Contestants:
    return beside_tcpdump(PLAIN_MIX.file(), ANY, str(OUTPUT))


def compressed(file: Path, decompress: str) -> Contestants:
    piped = f"{decompress} '{file}' | tcpdump -r - -w {NOWHERE} '{PLAIN}'"
    return {
        f"{decompress} | tcpdump, two cores": process("sh", "-c", piped),
        "pcapext, two cores": process(*pcapext_filter(file, PLAIN)),
        f"{decompress} | tcpdump, one core": process(*ONE_CORE, "sh", "-c", piped),
        "pcapext, one core": process(*ONE_CORE, *pcapext_filter(file, PLAIN)),
    }


@race(rounds=7, each=HALF.packets)
def filter_gzip() -> Contestants:
    return compressed(HALF.compressed("gzip", ".gz"), "zcat")


@race(rounds=7, each=HALF.packets)
def filter_zstd() -> Contestants:
    return compressed(HALF.compressed("zstd", ".zst"), "zstd -dc")


def side_by_side(file: Path) -> Contestants:
    """Two compressed files: the same one twice."""
    command = (PCAPEXT, "filter", "-r", str(file), "-r", str(file), "-w", NOWHERE, PLAIN)
    counting = (*command[:6], "--count", PLAIN)
    return {
        "pcapext, one core": process(*ONE_CORE, *command),
        "pcapext, two cores": process(*command),
        "pcapext --count, one core": process(*ONE_CORE, *counting),
        "pcapext --count, two cores": process(*counting),
    }


@race(rounds=7, each=2 * HALF.packets)
def filter_two_gzip() -> Contestants:
    return side_by_side(HALF.compressed("gzip", ".gz"))


@race(rounds=7, each=2 * HALF.packets)
def filter_two_zstd() -> Contestants:
    return side_by_side(HALF.compressed("zstd", ".zst"))


@race(rounds=7, each=SMALL.packets)
def filter_small() -> Contestants:
    """tshark is too slow for more."""
    file = SMALL.file()
    return {
        **beside_tcpdump(file, PLAIN),
        "tshark -Y 'tcp.port == 80'": process(*ONE_CORE, "tshark", "-r", str(file), "-Y", "tcp.port == 80", "-w", NOWHERE),
    }


# --- in Python


def peer(module: str) -> Any:
    """A library to race with."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(f"{error}; pip install -e '.[dev,bench]' installs what benchmarks need") from None


def with_dpkt() -> Callable[[bytes], bool]:
    """Whether a frame matches `tcp port 80`."""
    dpkt = peer("dpkt")
    ethernet, ip, tcp = dpkt.ethernet.Ethernet, (dpkt.ip.IP, dpkt.ip6.IP6), dpkt.tcp.TCP

    def test(frame: bytes) -> bool:
        packet = ethernet(frame).data
        if not isinstance(packet, ip) or not isinstance(packet.data, tcp):
            return False
        return 80 in (packet.data.sport, packet.data.dport)

    return test


def with_scapy() -> Callable[[Any], bool]:
    """Whether a packet of scapy's matches `tcp port 80`."""
    tcp = peer("scapy.all").TCP

    def test(packet: Any) -> bool:
        return tcp in packet and 80 in (packet[tcp].sport, packet[tcp].dport)

    return test


@race(rounds=7, each=SMALL.packets)
def count_in_python() -> Contestants:
    file = str(SMALL.file())
    pcapy, cypcap, dpkt, scapy = map(peer, ("pcapy", "cypcap", "dpkt", "scapy.all"))
    by_dpkt, by_scapy = with_dpkt(), with_scapy()

    def count_with_pcapy() -> int:
        reader = pcapy.open_offline(file)
        reader.setfilter(PLAIN)
        return sum(1 for _ in iter(lambda: reader.next()[0], None))

    def count_with_cypcap() -> int:
        with cypcap.open_offline(file) as reader:
            reader.setfilter(PLAIN)
            return sum(1 for _ in reader)

    def count_with_dpkt() -> int:
        with open(file, "rb") as stream:
            return sum(by_dpkt(frame) for _, frame in dpkt.pcap.Reader(stream))

    def count_with_scapy() -> int:
        with scapy.PcapReader(file) as reader:
            return sum(map(by_scapy, reader))

    return {
        "pcapext.open_offline, with a filter": lambda: sum(1 for _ in open_offline(file, filter=PLAIN)),
        "pcapext.count": lambda: count(file, PLAIN),
        "pcapy-ng, setfilter": count_with_pcapy,
        "cypcap, setfilter": count_with_cypcap,
        "dpkt, ports in Python": count_with_dpkt,
        "scapy, ports in Python": count_with_scapy,
    }


#: So many frames, so often.
FRAMES, TIMES = 2000, 50


@race(rounds=7, each=FRAMES * TIMES)
def matches() -> Contestants:
    random = Random(0)
    frames = random.sample(SMALL.pool(random), FRAMES)
    pcapy, cypcap, scapy = map(peer, ("pcapy", "cypcap", "scapy.all"))
    by_scapy = with_scapy()
    ether = scapy.Ether
    own, inner = (pcapext.compile(expression, linktype=LINKTYPE, snaplen=SNAPLEN) for expression in (PLAIN, EXTENDED))
    by_cypcap = cypcap.compile(cypcap.DatalinkType.EN10MB, SNAPLEN, PLAIN, True, cypcap.NETMASK_UNKNOWN).offline_filter
    header = cypcap.Pkthdr
    bpf_filter = libpcap().lib.bpf_filter
    code = libpcap().ffi.from_buffer("struct bpf_insn[]", bytes(own))

    def calls(test: Callable[[bytes], object]) -> Callable[[], int]:
        def run() -> int:
            matching = 0
            for _ in range(TIMES):
                for frame in frames:
                    if test(frame):
                        matching += 1
            return matching

        return run

    return {
        f"program.matches, '{PLAIN}'": calls(own.matches),
        f"program.matches, '{EXTENDED}'": calls(inner.matches),
        "libpcap's bpf_filter through cffi": calls(lambda frame: bpf_filter(code, frame, len(frame), len(frame))),
        "pcapy-ng, BPFProgram.filter": calls(pcapy.BPFProgram(PLAIN).filter),
        "cypcap, BpfProgram.offline_filter": calls(lambda frame: by_cypcap(header(caplen=len(frame), len=len(frame)), frame)),
        "dpkt, ports in Python": calls(with_dpkt()),
        "scapy, ports in Python": calls(lambda frame: by_scapy(ether(frame))),
    }


# --- what grows

#: Runs a command and prints the most memory that it had, in KiB. A process of its own: a child counts what its parent had at the fork.
PEAK = """\
import os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(*command: str) -> float:
    """The most memory that a command has while it runs, in MB."""
    done = subprocess.run([PYTHON, "-c", PEAK, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return int(done.stdout) * 1024 / 1e6


@reporting
def memory() -> Iterator[str]:
    """For /dev/null as for a file: what is kept in memory is the same."""
    bare = peak(PYTHON, "-c", "pass")
    yield f"{'memory':<52} {'peak':>10} {'more':>10}"
    yield f"  {'Python alone':<50} {bare:>7.1f} MB"
    commands = {
        f"pcapext '{expression}', {capture.packets:,} packets": pcapext_filter(capture.file(), expression)
        for capture in (GROWING[1], GROWING[-1])
        for expression in (PLAIN, EXTENDED)
    }
    commands["gzip"] = pcapext_filter(HALF.compressed("gzip", ".gz"), PLAIN)
    commands["zstd"] = pcapext_filter(HALF.compressed("zstd", ".zst"), PLAIN)
    for name, command in commands.items():
        megabytes = peak(*command)
        yield f"  {name:<50} {megabytes:>7.1f} MB {megabytes - bare:>+7.1f} MB"


@reporting
def growth() -> Iterator[str]:
    """Time a packet, without what an empty capture takes in the same rounds."""
    tools = {"pcapext": (PCAPEXT, "filter", "--count", "-r"), "tcpdump": ("tcpdump", "--count", "-r")}

    def named(tool: str, capture: Capture) -> str:
        return f"{tool}, {capture.packets:,} packets"

    empty, *others = GROWING
    yield f"{'growth':<52} {'median':>12} {'a packet':>12}"
    for capture in others:
        contestants = {
            named(tool, read): process(*ONE_CORE, *command, str(read.file()), PLAIN)
            for read in (empty, capture)
            for tool, command in tools.items()
        }
        # Few packets hide behind start-up: they are read more often.
        times = medians(contestants, 31 if capture.packets < MILLION else 7)
        for tool in tools:
            seconds = times[named(tool, capture)]
            each = 1e9 * (seconds - times[named(tool, empty)]) / capture.packets
            yield f"  {named(tool, capture):<50} {1e3 * seconds:>9.1f} ms {each:>9.0f} ns"
