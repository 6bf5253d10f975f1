"""Searching: what shares a search, and what long lists of hosts, networks and ports cost; verdicts against Python's own sets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from random import Random

import pytest
from graphs import evaluate, graph_of, random_graphs, random_inputs

from pcapext import compile as compile_filter
from pcapext.assemble import assemble
from pcapext.bpf import Program
from pcapext.cfg import Among, Block, Branch, Cfg, Comparison, Const, Test, parts
from pcapext.machine import run
from pcapext.optimize import search

MODULE = importlib.import_module("pcapext.optimize.search")  # the package's own `search` is the function

#: As many numbers as are worth to share a search, and others.
MANY = " ".join(str(number) for number in range(0, 100, 4))
OTHERS = " ".join(str(number) for number in range(1, 101, 4))
ENDS = "\n98: return 1\n99: return 0"


def searches(cfg: Cfg) -> int:
    """The searches for the least of the numbers that are written out."""
    return str(cfg).count(" eq 0 ? ")


@pytest.mark.parametrize(
    ("text", "count", "place"),
    [
        (
            "0: nproto eq 1 ? 1 : 3\n1: (load1[3] among N) eq 1 ? 98 : 2\n2: (load1[5] among N) eq 1 ? 98 : 99\n"
            "3: (load1[7] among N) eq 1 ? 98 : 4\n4: (load1[8] among N) eq 1 ? 98 : 99",
            2,
            "place",
        ),
        (
            "0: nproto eq 1 ? 1 : 3\n1: (load1[nhoff + 3] among N) eq 1 ? 98 : 2\n2: (load1[nhoff + 5] among O) eq 1 ? 98 : 99\n"
            "3: (load1[nhoff + 3] among N) eq 1 ? 98 : 4\n4: (load1[nhoff + 9] among O) eq 1 ? 98 : 99",
            1,
            "place",
        ),
        (
            "0: nproto eq 1 ? 1 : 3\n1: (load1[3] among N) eq 1 ? 98 : 2\n2: load1[9] eq 7 ? 98 : 99\n"
            "3: (load1[4] among N) eq 1 ? 98 : 4\n4: load1[9] eq 8 ? 98 : 99",
            1,
            "resume",
        ),
        ("0: nproto eq 1 ? 1 : 2\n1: (load1[3] among N) eq 1 ? 98 : 99\n2: (load1[3] among N) eq 1 ? 99 : 98", 1, "resume"),
        ("0: nproto eq 1 ? 1 : 2\n1: (load1[3] among N) eq 1 ? 98 : 99\n2: (load1[4] among N) eq 1 ? 98 : 99", 1, "sought"),
        ("0: (load1[3] among N) eq 1 ? 98 : 1\n1: (load1[4] among N) eq 1 ? 98 : 99", 2, ""),
        ("0: nproto eq 1 ? 1 : 2\n1: (load1[3] among N) eq 1 ? 98 : 99\n2: (load1[4] among 0 4 8 12 16 20) eq 1 ? 98 : 99", 2, ""),
    ],
    ids=[
        "the next search differs in its place",
        "or behind the same base",
        "places that go on elsewhere",
        "or to the same blocks, but for the other outcome",
        "and such that go on alike",
        "not two on one path",
        "not among other numbers",
    ],
)
def test_shared(text: str, count: int, place: str) -> None:
    cfg = graph_of(text.replace("N", MANY).replace("O", OTHERS) + ENDS)
    after = search(cfg)
    assert searches(after) == count
    assert [name for name in ("place", "resume", "sought") if name in str(after)][:1] == ([place] if place else [])
    check(cfg, after, Random(text))


def check(cfg: Cfg, after: Cfg, rng: Random) -> None:
    """The same verdicts, on graphs and on the program."""
    assert not any(isinstance(part, Among) for block in after.blocks.values() for value in block.values for part in parts(value))
    program = Program(assemble(after))
    for packet, keys in random_inputs(rng, 20):
        verdict = evaluate(cfg, packet, None, keys)
        assert evaluate(after, packet, None, keys) == verdict, (str(cfg), packet.hex(), keys)
        assert run(program, packet, None, lambda *_, keys=keys: keys).value == verdict


def test_random_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sets in place of constants, and each search shared that can be."""
    monkeypatch.setattr(MODULE, "_SHARED", 1)
    shared = 0
    for cfg, rng in random_graphs(200, seed=91):
        sets = [((0, 0), (3, 5), (14, 15), (17, 17), (80, 90), (0x800, 0x800)), ((2, 2), (6, 6), (128, 0xFFFF_FFFF))]
        blocks = dict(cfg.blocks)
        for label, block in blocks.items():
            match block.end:
                case Branch(Test(_, left, Const()), then, otherwise):
                    number = rng.choice([0, 1])
                    end = Branch(Test(Comparison.EQ, Among(left, rng.choice(sets)), Const(number)), then, otherwise)
                    blocks[label] = Block(block.assignments, end)
        cfg = Cfg(cfg.entry, blocks)
        after = search(cfg)
        shared += "sought" in str(after)
        check(cfg, after, rng)
    assert shared > 30


# ---- Filters ----

RNG = Random(31)
HOSTS = [RNG.randrange(1 << 24, 0xE000_0000) for _ in range(1000)]
PORTS = RNG.sample(range(1, 65535), 1000)


def frame(source: int, destination: int, ethertype: int = 0x0800, sport: int = 0, dport: int = 0) -> bytes:
    """An Ethernet frame: TCP over IPv4 with these addresses and ports, or ARP."""
    addresses = [address.to_bytes(4, "big") for address in (source, destination)]
    if ethertype != 0x0800:
        return bytes(12) + ethertype.to_bytes(2, "big") + bytes(14) + addresses[0] + bytes(6) + addresses[1]
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    return bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06\x00\x00" + b"".join(addresses) + ports + bytes(16)


def frames_near(numbers: list[int], ports: bool) -> Iterator[tuple[bytes, int, int]]:
    """Frames with each number, and its neighbours, in either place, and what stands in the two places."""
    for number in numbers:
        for near in (number - 1, number, number + 1):
            for pair in ((near, 3), (3, near)):
                if ports:
                    yield frame(1, 2, sport=pair[0], dport=pair[1]), *pair
                else:
                    for ethertype in (0x0800, 0x0806, 0x8035):
                        yield frame(*pair, ethertype), *pair


def dotted(number: int) -> str:
    return str(IPv4Address(number))


@pytest.mark.parametrize(
    ("form", "count", "instructions", "path"),
    [
        ("inner host", 2, 26, 16),
        ("inner host", 3, 28, 17),
        ("inner host", 10, 66, 19),
        ("inner host", 100, 290, 28),
        ("inner host", 1000, 2600, 38),
        ("inner src host", 1000, 1300, 22),
        ("inner (host", 1000, 2600, 38),
        ("inner igmp or host", 2, 30, 16),
        ("inner igmp or host", 3, 36, 17),
        ("inner igmp or host", 10, 70, 22),
        ("inner igmp or host", 100, 300, 31),
        ("inner tcp port", 2, 13, 12),
        ("inner tcp port", 3, 15, 14),
        ("inner tcp port", 10, 36, 17),
        ("inner tcp port", 100, 275, 25),
        ("inner tcp port", 1000, 2560, 36),
        ("inner igmp or tcp port", 10, 80, 27),
    ],
)
def test_cost_and_verdicts_of_lists(form: str, count: int, instructions: int, path: int) -> None:
    """How long the program is and how many instructions run at most: about 1.3 a number for each place, and two tests more for four times
    as many."""
    ports = "port" in form
    numbers = (PORTS if ports else HOSTS)[:count]
    names = [str(number) if ports else dotted(number) for number in numbers]
    text = f"{form} {' or '.join(names)}" if form != "inner (host" else f"inner ({' or '.join(f'host {name}' for name in names)})"
    program = compile_filter(text)
    assert len(program) <= instructions
    longest = 0
    for packet, source, destination in frames_near(numbers, ports):
        result = run(program, packet)
        longest = max(longest, result.executed)
        assert bool(result.value) == (source in numbers or (destination in numbers and "src" not in form))
    assert longest <= path


@pytest.mark.parametrize(
    ("form", "instructions"),
    [("inner host", 22), ("inner (not (host", 34), ("inner igmp or host", 40)],
)
def test_hosts_in_a_row_are_a_range(form: str, instructions: int) -> None:
    text = f"{form} {' or '.join(dotted(0x0A00_0000 + number) for number in range(300))}{')' * form.count('(')}"
    program = compile_filter(text)
    assert len(program) <= instructions
    for packet, *pair in frames_near([0x0A00_0000, 0x0A00_0000 + 299], ports=False):
        inside = any(0x0A00_0000 <= number < 0x0A00_0000 + 300 for number in pair)
        assert bool(run(program, packet).value) == (inside != ("not" in form))


@pytest.mark.parametrize("lengths", [(24,), (8, 16, 24, 32), (31, 32)])
def test_networks(lengths: tuple[int, ...]) -> None:
    networks = [IPv4Network((number, RNG.choice(lengths)), strict=False) for number in HOSTS[:200]]
    program = compile_filter(f"inner net {' or '.join(map(str, networks))}")
    assert len(program) <= 2 * 200 * (1.3 if len(lengths) == 1 else 2) + 30
    ends = [end for network in networks for end in (int(network[0]), int(network[-1]))]
    for packet, *pair in frames_near(RNG.sample(ends, 80), ports=False):
        assert bool(run(program, packet).value) == any(IPv4Address(number) in network for network in networks for number in pair)


@pytest.mark.parametrize(
    ("words", "instructions", "path"),
    [((1, 1, 1, 300), 860, 60), ((2, 2, 2, 100), 1800, 80), ((300, 1, 1, 1), 4096, 60)],
    ids=["one network", "eight networks", "first words that differ"],
)
def test_ipv6_hosts(words: tuple[int, ...], instructions: int, path: int) -> None:
    choices = [RNG.sample(range(1 << 32), count) for count in words]
    hosts = list({sum(RNG.choice(word) << shift for word, shift in zip(choices, (96, 64, 32, 0), strict=True)) for _ in range(200)})
    program = compile_filter(f"inner src host {' or '.join(str(IPv6Address(host)) for host in hosts)}")
    assert len(program) <= instructions
    for host in hosts:
        for other in (host, host ^ 1, host ^ 1 << 40, host ^ 1 << 80, host ^ 1 << 120):
            packet = bytes(12) + b"\x86\xdd\x60" + bytes(7) + other.to_bytes(16, "big") + bytes(16)
            result = run(program, packet)
            assert bool(result.value) == (other in hosts)
            assert result.executed <= path


@pytest.mark.parametrize(
    "text",
    [
        "host {hosts} or inner arp",
        "not (host {hosts}) or inner arp",
        "inner host {hosts}",
        "inner igmp or inner dst host {hosts} or inner tcp port {ports}",
        "port {ports} or inner arp",
        "net {nets} or inner udp",
        "ip6 host ::1 or ::2 or ::3 or ::9 or fe80::1 or fe80::2 or inner arp",
        "inner host ::1 or ::2 or ::3 or ::9 or fe80::1 or fe80::2 or {hosts}",
    ],
)
def test_short_packets(text: str) -> None:
    """Cut at each byte, a packet has the verdict that the filter without the passes gives it."""
    hosts = HOSTS[:30]
    nets = [f"{dotted(host & 0xFFFF_0000)}/16" for host in hosts]
    text = text.format(hosts=" or ".join(map(dotted, hosts)), ports=" or ".join(map(str, PORTS[:30])), nets=" or ".join(nets))
    plain, improved = compile_filter(text, optimize=False), compile_filter(text)
    for _ in range(8):
        pair = [RNG.choice([RNG.choice(hosts), 5]) for _ in range(2)]
        sport, dport = RNG.choices([*PORTS[:30], 7], k=2)
        address = (RNG.choice([1, 2, 5, 0xFE80 << 112 | 1]) for _ in range(2))
        for packet in (
            frame(*pair, sport=sport, dport=dport),
            frame(*pair, 0x0806),
            bytes(12) + b"\x86\xdd\x60" + bytes(5) + b"\x06\x00" + b"".join(each.to_bytes(16, "big") for each in address) + bytes(20),
        ):
            for length in range(len(packet) + 1):
                assert run(improved, packet[:length]).value == run(plain, packet[:length]).value, length
                found, expected = (run(program, packet[:length], len(packet)).value for program in (improved, plain))
                # What the snap length cut: only a check of an extension term takes the rest for there.
                assert found == expected if text.count("inner") == text.count("or inner") else found in (0, run(plain, packet).value), (
                    length
                )
