"""The remembered walk: what is behind it never gets into it, and no verdict depends on what was compiled before."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from graphs import EFFORT, evaluate, graph_of, random_graphs, random_inputs
from packets import EN10MB, packets

import pcapext
from pcapext import prepare
from pcapext.assemble import assemble
from pcapext.bpf import Program
from pcapext.cfg import Block, Cfg, Leave, Local, Return, show
from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYERS
from pcapext.lower import told_by_walk
from pcapext.machine import run
from pcapext.optimize import finish, improve
from pcapext.prepare import lower_improved

ETHERNET = next(row for row in LINK_LAYERS if row.is_ethernet)


def walks() -> int:
    """How many walks were improved since the start."""
    return prepare._walk.cache_info().misses


def test_another_filter_takes_the_same_walk() -> None:
    pcapext.compile("inner tcp port 7", target="classic")
    before = walks()
    for expression in (
        "inner tcp port 8",
        "inner tcp port 8 and not host 10.0.0.1",
        "inner tcp port 9 or 10 or 11 or 2000",
        "inner tcp port 7",
    ):
        pcapext.compile(expression, target="classic")
    assert walks() == before
    pcapext.compile("inner udp port 7", target="classic")
    pcapext.compile("inner tcp port 7", target="classic", linktype="RAW")
    pcapext.compile("inner tcp port 7", target="classic", max_levels=2)
    pcapext.compile("inner tcp[13] & 2 != 0", target="classic")  # loads something else
    assert walks() == before + 4


@pytest.mark.parametrize("expression", ["inner tcp port 80 and not host 10.0.0.1", "not inner port 53", "inner host 10.0.0.1 or 10.0.0.2"])
def test_what_was_compiled_before_does_not_matter(expression: str) -> None:
    prepare._walk.cache_clear()
    alone = pcapext.compile(expression, target="classic")
    pcapext.compile(expression.replace("80", "81").replace("53", "54").replace("10.", "11."), target="classic")
    assert pcapext.compile(expression, target="classic") == alone


#: Name, a graph, its head (None: it is not split).
SPLITS = [
    (
        "the head ends where the packet is read",
        "0: tproto eq 6 ? 1 : 3\n1: load2[thoff + 2] eq 80 ? 2 : 3\n2: return 96\n3: return 0",
        "0: tproto eq 6 ? 2 : 1\n1: return 0\n2: void := load2[thoff + 2]; leave 0 thoff",
    ),
    (
        "what only some ways on to acceptance load is not sure",
        "0: tproto eq 6 ? 1 : 4\n1: load2[thoff] eq 80 ? 3 : 2\n2: load2[thoff + 2] eq 80 ? 3 : 4\n3: return 96\n4: return 0",
        "0: tproto eq 6 ? 2 : 1\n1: return 0\n2: void := load2[thoff]; leave 0 thoff",
    ),
    (
        "what all of them load is, however far behind",
        "0: tproto eq 6 ? 1 : 4\n1: load2[thoff] eq 80 ? 2 : 4\n2: load2[nhoff + 2] eq 80 ? 3 : 4\n3: return 96\n4: return 0",
        "0: tproto eq 6 ? 2 : 1\n1: return 0\n2: void := load2[nhoff + 2]; void := load2[thoff]; leave 0 nhoff thoff",
    ),
    (
        "two ways on",
        "0: nproto eq 2048 ? 1 : 2\n1: load1[nhoff] eq 5 ? 3 : 4\n2: load1[nhoff + 6] eq 5 ? 3 : 4\n3: return 96\n4: return 0",
        "0: nproto eq 2048 ? 1 : 2\n1: void := load1[nhoff]; leave 0 nhoff\n2: void := load1[nhoff + 6]; leave 1 nhoff",
    ),
    (
        "no head at all",
        "0: load1[poff] eq 5 ? 1 : 2\n1: return 96\n2: return 0",
        "0: void := load1[poff]; leave 0 poff",
    ),
    (
        "a question to the walk in the rest",
        "0: tproto eq 6 ? 1 : 4\n1: load2[thoff] eq 80 ? 2 : 4\n2: depth gt 0 ? 3 : 4\n3: return 96\n4: return 0",
        None,
    ),
    (
        "and one that only looks so",
        "0: tproto eq 6 ? 1 : 4\n1: length gt 60 ? 2 : 4\n2: load1[12] eq thoff ? 3 : 4\n3: return 96\n4: return 0",
        "0: tproto eq 6 ? 2 : 1\n1: return 0\n2: leave 0 thoff",
    ),
]


@pytest.mark.parametrize(("text", "head"), [case[1:] for case in SPLITS], ids=[case[0] for case in SPLITS])
def test_split(text: str, head: str | None) -> None:
    cfg = graph_of(text)
    split = prepare._split(cfg, frozenset().union(*map(told_by_walk, cfg.blocks.values())))
    assert (None if split is None else "\n".join(f"{label}: {show(block)}" for label, block in enumerate(split.head))) == head


def test_a_graph_without_walk_stays_as_it_is() -> None:
    cfg = graph_of("0: load1[0] eq 5 ? 1 : 2\n1: return 96\n2: return 0")
    assert lower_improved(cfg, ETHERNET, DEFAULT_SETTINGS, improve) is cfg


A, B, C = Local("A"), Local("B"), Local("C")


@pytest.mark.parametrize("moves", [((A, B), (B, A)), ((A, B), (B, C), (C, A)), ((A, B), (B, C)), ((A, C), (B, A)), ((A, C), (B, C))])
def test_locals_change_places_at_once(moves: tuple[tuple[Local, Local], ...]) -> None:
    numbers = {A: 1, B: 2, C: 3}
    begin = graph_of("0: A := 1; B := 2; C := 3; return 0").blocks[0].assignments
    expected = {**numbers, **{local: numbers[value] for local, value in moves}}
    for local in numbers:
        cfg = Cfg(0, {0: Block((*begin, *prepare._at_once(moves)), Return(local))})
        assert evaluate(cfg, b"") == expected[local]


def test_passes_keep_what_a_part_of_a_graph_passes_on() -> None:
    """Random graphs of which the verdicts, but for rejection, are ends of a part."""
    left = 0
    for cfg, rng in random_graphs(200, seed=83):
        blocks = dict(cfg.blocks)
        for label, block in cfg.blocks.items():
            match block.end:
                case Return(value) if block.assignments or show(value) != "0":
                    blocks[label] = Block(block.assignments, Leave(label % 3, (value, value)))
        part = cfg.with_blocks(blocks)
        improved = improve(part)
        for packet, keys in random_inputs(rng):
            result = evaluate(part, packet, None, keys)
            left += result > 0
            assert evaluate(improved, packet, None, keys) == result, (str(part), packet.hex())
    assert left > 400


def random_filter(rng: Random) -> Cfg:
    """Questions to the walk, then some about the packet."""
    lines = []
    for label in range(6):
        key = rng.choice(("nproto", "tproto", "depth"))
        asked = f"{key} eq {rng.choice((0, 1, 6, 17, 0x800, 0x86DD))}"
        if label > 2:
            asked = f"load{rng.choice((1, 2))}[{rng.choice(('nhoff', 'thoff', 'poff'))} + {rng.randrange(12)}] gt {rng.randrange(0x100)}"
        then, otherwise = (min(rng.choice((label + 1, label + 2, 6, 7)), 7) for _ in range(2))
        lines.append(f"{label}: {asked} ? {then} : {otherwise}")
    return graph_of("\n".join([*lines, "6: return 96", "7: return 0"]))


def test_random_filters_have_the_verdicts_of_the_keys() -> None:
    """Each graph is evaluated with the keys that the generated packet must have; the program finds them itself."""
    verdicts, split = Counter[bool](), 0
    for seed in range(10 * EFFORT):
        rng = Random(seed)
        cfg = improve(random_filter(rng))
        if not any(map(told_by_walk, cfg.blocks.values())):
            continue
        before = prepare._walk.cache_info()
        program = Program(assemble(finish(lower_improved(cfg, ETHERNET, DEFAULT_SETTINGS, improve))))
        split += prepare._walk.cache_info() != before
        for packet in packets(60, seed, linktypes=[EN10MB]):
            for length in (len(packet.data), rng.choice(packet.cuts())):
                data = packet.data[:length]
                wanted = evaluate(cfg, data, None, packet.keys_of(length))
                verdicts[wanted > 0] += 1
                assert run(program, data).value == wanted, (str(cfg), packet.layers, length)
    assert split > 3
    assert min(verdicts.values()) > 50
