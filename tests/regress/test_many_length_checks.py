"""Of a chain of needless length checks each round of the passes dropped the last ones only: a long one took 50 rounds."""

from __future__ import annotations

from graphs import graph_of

from pcapext.cfg import Branch
from pcapext.optimize.bounds import drop_bounds
from pcapext.optimize.merge import merge


def test_one_round_is_enough() -> None:
    checks = "\n".join(f"{label}: (length sub thoff) ge {label + 1} ? {label + 1} : 99" for label in range(60))
    loads = " add ".join(f"(load1[(thoff add {offset})]" for offset in range(60)) + " add 0" + ")" * 60
    cfg = merge(drop_bounds(graph_of(f"{checks}\n60: return {loads}\n99: return 0")))
    assert not any(isinstance(block.end, Branch) for block in cfg.blocks.values())
