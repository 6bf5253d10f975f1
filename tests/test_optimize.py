"""All passes together: no verdict changes, there is an end, and long filters take a time in proportion."""

from __future__ import annotations

import cProfile
import os
import pstats
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from bpf_oracles import PROLOGUE, random_instructions
from graphs import EFFORT, evaluate, random_graphs, random_inputs, steered_packet
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import LINK_TYPES, Generated, packets

from pcapext.assemble import assemble
from pcapext.bpf import Program
from pcapext.cfg import Cfg
from pcapext.codegen import generate
from pcapext.compiler import compile as compile_filter
from pcapext.errors import FilterError
from pcapext.lift import lift
from pcapext.machine import run
from pcapext.mark import mark
from pcapext.optimize import PASSES, finish, gather, improve, optimize, search
from pcapext.parser import parse
from pcapext.pcap_bridge import compile_expression
from pcapext.resolve import resolve


def rounds(cfg: Cfg) -> int:
    """How often the passes have to be repeated until nothing changes, that round included."""
    for count in range(1, 100):
        before = cfg
        for each in PASSES:
            cfg = each(cfg)
        if cfg == before:
            return count
    raise AssertionError("no end")


def test_random_graphs() -> None:
    smaller = 0
    for cfg, rng in random_graphs(400, seed=80):
        improved = optimize(cfg)
        smaller += len(str(improved)) < len(str(cfg))
        for packet, keys in random_inputs(rng):
            assert evaluate(improved, packet, None, keys) == evaluate(cfg, packet, None, keys), (str(cfg), packet.hex(), keys)
            assert evaluate(improved, packet, 200, keys) in (0, evaluate(cfg, packet, 200, keys)), (str(cfg), packet.hex(), keys)
    assert smaller > 200


def test_random_graphs_have_a_fixpoint() -> None:
    """The repeated passes have one. The last ones may, seldom, let a second time find more, which is the end then."""
    same = count = 0
    for cfg, _ in random_graphs(80, seed=81, sizes=(5, 30, 80)):
        assert rounds(cfg) <= 10
        improved = optimize(cfg)
        again = finish(improve(improved))
        assert len(assemble(again)) <= len(assemble(improved))
        assert finish(improve(again)) == again
        same += again == improved
        count += 1
    assert same > 0.95 * count


def test_assembled_programs_do_the_same_as_their_graphs() -> None:
    """With the shapes of values that only optimized graphs have."""
    for cfg, rng in random_graphs(250, seed=82):
        improved = optimize(cfg)
        made = Program(assemble(improved))
        assert made.kernel_refusal(stock=False) is None
        for packet, keys in random_inputs(rng, 8):
            assert run(made, packet, None, lambda *_, keys=keys: keys).value == evaluate(improved, packet, None, keys), str(improved)


@settings(max_examples=200 * EFFORT)
@given(st.randoms(use_true_random=False), st.booleans(), st.integers(0, 64), st.integers(0, 40))
def test_any_program(rng: Random, steered: bool, length: int, missing: int) -> None:
    """Optimized, a program returns the same for every packet captured whole, and of one that lacks its end the same or 0."""
    instructions = (*PROLOGUE, *random_instructions(rng))
    best = Program(assemble(optimize(lift(instructions))))
    packet = (steered_packet(instructions, rng) if steered else rng.randbytes(length))[:length]
    expected, found = (run(program, packet).value for program in (Program(instructions), best))
    assert found == expected
    expected, found = (run(program, packet, len(packet) + missing).value for program in (Program(instructions), best))
    assert found in (0, expected)


FILTERS = """
    inner tcp port 80
    inner host 10.0.0.1
    inner net 10.0.0.0/8 or inner ip6
    inner udp dst port 53 and depth > 0
    not inner tcp
    not (inner udp port 53 or inner icmp)
    inner port 1 or inner port 2 or inner portrange 53-80
    inner src and dst net 10
    inner (tcp or udp) and not inner port 53
    inner proto 47 or inner ip proto 4
    inner ether host 02:00:00:00:00:01
    inner ether multicast or inner ether[0:4] != 0
    inner ip multicast or inner ip6 multicast
    inner tcp[13] & 2 != 0
    inner tcp[inner tcp[12] >> 2 & 0x3c : 4] != 0x47455420
    inner ip[inner ip[2:2] : 1] = 5
    inner ip[inner ip[4:4] : 1] > 5 or inner arp
    inner ip[0] + inner ip[1] * 2 < inner ip[2:2] - 5
    inner ip[6:2] & 0x1fff = 0 and inner udp[4:2] > 20
    inner ip6[6] = 44 or inner sctp[0:2] = 5
    payload[0] = 0 or payload[inner ip[8]:2] > 5
    payload[payload[0:4]:4] > 5
    encap and inner icmp6
    poff > 54
    len - poff < 100 and inner tcp
    ip[2:2] = poff - 14
    ip[2:2] > poff - 14 or tproto 17
    link[thoff + 13] & 2 != 0
    link[thoff - 20] > 4
    ip[poff - 34] = 0x45
    ip6[thoff] > poff
    1 << depth = 4 or 100 / depth > 20
    len % depth = 1
    vlan and inner tcp
    vlan and inner ip and host 10.0.0.1
    (vlan 10 and inner tcp) or (ip and depth > 1)
    mpls and inner arp
    tcp and inner tcp and ip[8] > 5
"""


@cache
def samples(linktype: int) -> list[tuple[Generated, bytes]]:
    """Packets of a link type with every nesting, each also cut to two of the lengths where something changes."""
    rng = Random(linktype)
    return [
        (packet, packet.data[:length])
        for packet in packets(8 * EFFORT, seed=linktype, linktypes=(linktype,))
        for length in (len(packet.data), *rng.choices(packet.cuts(), k=2))
    ]


@pytest.mark.parametrize("text", [line.strip() for line in FILTERS.strip().splitlines()])
def test_filters(text: str) -> None:
    """Compiled with and without the passes, a filter has the same verdict on every packet, cut short or not."""
    compared = 0
    for linktype in LINK_TYPES:
        try:
            plain = compile_filter(text, linktype=linktype, optimize=False)
            improved = compile_filter(text, linktype=linktype)
        except FilterError as error:
            if error.message.startswith(("no VLAN support", "no MPLS support", "expression rejects all packets")):
                continue
            raise
        for packet, data in samples(linktype):
            compared += 1
            keys = packet.keys_of(len(data))
            expected, found = (run(program, data, None, lambda *_, keys=keys: keys).value for program in (plain, improved))
            assert found == expected, (linktype, data.hex())
            # Where the snap length cut the packet, it may also be rejected.
            expected, found = (run(program, data, len(packet.data), lambda *_, keys=keys: keys).value for program in (plain, improved))
            assert found in (0, expected), (linktype, data.hex(), len(packet.data))
    assert compared > 20


def graph(text: str) -> Cfg:
    """The graph of a filter with extension terms before the passes."""
    marked = mark(text, resolve(text, parse(text)))
    return generate(lift(compile_expression(marked.text, 1, 262144, None, optimize=False)), marked)


#: Terms of a long filter, by number.
CHAINS: dict[str, Callable[[int], str]] = {
    "standard hosts": lambda number: f"host 10.0.{number // 256}.{number % 256}",
    "standard ports": lambda number: f"tcp port {2 * number + 1}",
    "inner hosts": lambda number: f"inner host 10.0.{number // 256}.{number % 256}",
    "inner IPv6 hosts": lambda number: f"inner ip6 host fe80::{number + 1:x}",
    "inner ports": lambda number: f"inner port {2 * number + 1}",
    "inner port ranges": lambda number: f"inner portrange {10 * number + 1}-{10 * number + 5}",
    "both": lambda number: f"inner tcp port {number + 1} or host 10.0.0.{number}",
    "relations": lambda number: f"ip[{number % 60}] = poff - {number}",
}


@pytest.mark.parametrize("kind", CHAINS)
def test_long_filters_take_a_time_in_proportion(kind: str) -> None:
    """Four times as many terms take at most six times as many calls of functions, in every pass and in assembling, gathered or not."""
    calls: dict[tuple[str, ...], list[int]] = {}
    for count in (20, 80):
        whole = graph("inner tcp or " + " or ".join(CHAINS[kind](number) for number in range(count)))
        for functions in ((gather, search, assemble), (*PASSES, assemble)):
            cfg = whole
            for function in functions:
                profile = cProfile.Profile()
                after = profile.runcall(function, cfg)
                key = functions[0].__name__, function.__name__
                calls.setdefault(key, []).append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
                cfg = after if isinstance(after, Cfg) else cfg
        assert rounds(cfg) <= 5
    assert {name: few for name, (few, many) in calls.items() if many > 6 * few} == {}


def test_programs_do_not_depend_on_the_order_of_sets() -> None:
    texts = [
        "inner ip[inner ip[4:4] : 1] / inner tcp[0] > 5 or host 10.0.0.1",
        "inner port 1 or vlan and inner ether host 02:00:00:00:00:01",
    ]
    script = f"from pcapext import compile; print([bytes(compile(text)).hex() for text in {texts!r}])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": str(seed)}
        ).stdout
        for seed in range(3)
    }
    assert len(printed) == 1
