"""Reading conditions from blocks: what is part of one, and what is not."""

from __future__ import annotations

import pytest
from graphs import graph_of

from pcapext.cfg import show
from pcapext.optimize.conditions import Condition, Join, fold

ENDS = "\n8: return 1\n9: return 0"


def text(condition: Condition, holds: bool = True) -> str:
    match condition:
        case Join(either, left, right, _):
            inside = f"({text(left.condition, left.holds)} {'or' if either else 'and'} {text(right.condition, right.holds)})"
            return inside if holds else f"not {inside}"
        case test:
            return f"{'' if holds else 'not '}{show(test.left)}"


@pytest.mark.parametrize(
    ("graph", "conditions"),
    [
        ("0: tproto eq 1 ? 8 : 9", ["0: tproto ? 8 : 9"]),
        ("0: tproto eq 1 ? 8 : 1\n1: depth eq 1 ? 8 : 9", ["0: (tproto or depth) ? 8 : 9"]),
        ("0: tproto eq 1 ? 8 : 1\n1: depth eq 1 ? 9 : 8", ["0: (tproto or not depth) ? 8 : 9"]),
        ("0: tproto eq 1 ? 1 : 9\n1: depth eq 1 ? 8 : 9", ["0: (tproto and depth) ? 8 : 9"]),
        ("0: tproto eq 1 ? 1 : 9\n1: depth eq 1 ? 9 : 8", ["0: (tproto and not depth) ? 8 : 9"]),
        ("0: tproto eq 1 ? 8 : 1\n1: goto 2\n2: depth eq 1 ? 3 : 9\n3: goto 8", ["0: (tproto or depth) ? 8 : 9"]),
        (
            "0: tproto eq 1 ? 1 : 2\n1: depth eq 1 ? 8 : 2\n2: nproto eq 1 ? 3 : 9\n3: poff eq 1 ? 9 : 8",
            ["0: ((tproto and depth) or (nproto and not poff)) ? 8 : 9"],
        ),
        (
            "0: tproto eq 1 ? 2 : 1\n1: depth eq 1 ? 2 : 9\n2: nproto eq 1 ? 9 : 3\n3: poff eq 1 ? 9 : 8",
            ["0: ((tproto or depth) and not (nproto or poff)) ? 8 : 9"],
        ),
        (
            "0: tproto eq 1 ? 1 : 2\n1: depth eq 1 ? 8 : 9\n2: nproto eq 1 ? 8 : 9",
            ["0: tproto ? 1 : 2", "1: depth ? 8 : 9", "2: nproto ? 8 : 9"],
        ),
        ("0: tproto eq 1 ? 8 : 1\n1: A := 5; depth eq A ? 8 : 9", ["0: tproto ? 8 : 1", "1: depth ? 8 : 9"]),
        ("0: A := 5; tproto eq A ? 8 : 1\n1: depth eq A ? 8 : 9", ["0: (tproto or depth) ? 8 : 9"]),
        ("0: tproto eq 1 ? 8 : 1\n1: depth eq 1 ? 8 : 8", ["0: (tproto or depth) ? 8 : 8"]),
        (
            "0: tproto eq 1 ? 2 : 1\n1: depth eq 1 ? 2 : 3\n2: poff eq 1 ? 8 : 3\n3: nproto eq 1 ? 8 : 9",
            ["0: (((tproto or depth) and poff) or nproto) ? 8 : 9"],
        ),
    ],
)
def test_fold(graph: str, conditions: list[str]) -> None:
    forks = fold(graph_of(graph + ENDS))
    assert sorted(f"{label}: {text(fork.condition)} ? {fork.then} : {fork.otherwise}" for label, fork in forks.items()) == conditions


def test_depth() -> None:
    """Only the innermost of a condition is one, where the whole is deeper than can be gone into."""
    deep = [f"{number}: tproto eq {number} ? {(number + 1, 998)[number % 2]} : {(999, number + 1)[number % 2]}" for number in range(500)]
    forks = fold(graph_of("\n".join([*deep, "500: tproto eq 7 ? 998 : 999", "998: return 1", "999: return 0"])))
    assert [fork.condition.depth for fork in forks.values() if isinstance(fork.condition, Join)] == [40]
    assert len(forks) == 501 - 40
