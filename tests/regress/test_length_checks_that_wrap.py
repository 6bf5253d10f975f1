"""A length check was dropped before a load that does not fail where the check does: because its offset wraps around, or
because it is read with another value of a local."""

from __future__ import annotations

import pytest
from graphs import evaluate, graph_of

from pcapext.flowkeys import FlowKeys
from pcapext.optimize.bounds import drop_bounds

PACKET = b"\xff\xff\xff\xf8\x10" + bytes(60)

GRAPHS = [
    "0: length ge lhoff ? 1 : 9\n1: load1[(lhoff add 7)] eq 0 ? 8 : 9",
    "0: length ge load4[0] ? 1 : 9\n1: load1[(load4[0] add load1[4])] eq 0 ? 8 : 9",
    "0: (length sub poff) ge (load4[0] add 1) ? 1 : 9\n1: load1[(poff add load4[0])] eq 0 ? 8 : 9",
    "0: A := 200; goto 2\n2: length ge A ? 1 : 9\n1: A := 5; load1[A] eq 0 ? 8 : 9",
]


@pytest.mark.parametrize("graph", GRAPHS)
def test_check_is_left(graph: str) -> None:
    cfg = graph_of(graph + "\n8: return 1\n9: return 0")
    assert evaluate(cfg, PACKET, None, FlowKeys(poff=20)) == 0
    assert evaluate(drop_bounds(cfg), PACKET, None, FlowKeys(poff=20)) == 0
