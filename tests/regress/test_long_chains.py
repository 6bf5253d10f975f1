"""Threading jumps took a time in the square of a long `or` chain, and each term asked for the protocol again."""

from __future__ import annotations

import cProfile
import pstats

from pcapext import compile
from pcapext.cfg import Cfg
from pcapext.codegen import generate
from pcapext.lift import lift
from pcapext.mark import mark
from pcapext.optimize.simplify import simplify
from pcapext.optimize.thread import thread_jumps
from pcapext.parser import parse
from pcapext.pcap_bridge import compile_expression
from pcapext.resolve import resolve


def ports(count: int) -> str:
    return " or ".join(f"inner port {2 * number + 1}" for number in range(count))


def graph(text: str) -> Cfg:
    marked = mark(text, resolve(text, parse(text)))
    return simplify(generate(lift(compile_expression(marked.text, 1, 262144, None, optimize=False)), marked))


def calls(count: int) -> int:
    profile = cProfile.Profile()
    profile.runcall(thread_jumps, graph(ports(count)))
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_time_is_in_proportion() -> None:
    assert calls(200) < 6 * calls(50)


def test_the_protocol_is_asked_for_once() -> None:
    assert len(compile(ports(100))) < 12 * 100
