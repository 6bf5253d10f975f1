"""A load that was kept because it can reject the packet went where the block did a load that only looked the same: its
local had been assigned again in between."""

from __future__ import annotations

from graphs import evaluate, graph_of

from pcapext.optimize import optimize
from pcapext.optimize.dead import remove_dead

GRAPH = "0: A := load1[0]; X := load1[(A add 0)]; A := load1[1]; load1[(A add 0)] eq 7 ? 1 : 2\n1: return 1\n2: return 0"


def test_the_first_load_still_rejects() -> None:
    cfg = graph_of(GRAPH)
    packet = bytes([200, 2, 7])  # byte 200 is not there
    assert evaluate(cfg, packet) == 0
    assert evaluate(remove_dead(cfg), packet) == 0
    assert evaluate(optimize(cfg), packet) == 0
    assert evaluate(optimize(cfg), bytes([0, 2, 7])) == 1
