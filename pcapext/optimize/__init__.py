"""The optimizer: passes from graph to graph, one a file, each of which keeps every verdict.

In:  a `Cfg`.
Out: a `Cfg` that rejects and accepts the same packets with less work.

The passes are repeated in their order until all in a row change nothing. Then blocks are joined, and `copy_tails` trades a few
instructions for jumps.
"""

from __future__ import annotations

from itertools import cycle, islice

from pcapext.cfg import Cfg
from pcapext.optimize.bounds import drop_bounds
from pcapext.optimize.dead import remove_dead
from pcapext.optimize.join import join
from pcapext.optimize.merge import merge
from pcapext.optimize.propagate import propagate
from pcapext.optimize.simplify import simplify
from pcapext.optimize.tails import copy_tails
from pcapext.optimize.thread import thread_jumps

PASSES = (simplify, propagate, thread_jumps, drop_bounds, remove_dead, merge)

#: Passes that come last, once: `join` hides equal tails from `merge`, which would undo `copy_tails`, and the others clean up.
LAST_PASSES = (join, merge, copy_tails, propagate, simplify, remove_dead)

#: Rounds after which to stop. Each round that changes anything makes the graph smaller or its values simpler.
_MAX_ROUNDS = 100


def optimize(cfg: Cfg) -> Cfg:
    """The graph after all passes."""
    idle = 0  # passes in a row that found nothing to do
    for improve in islice(cycle(PASSES), _MAX_ROUNDS * len(PASSES)):
        before, cfg = cfg, improve(cfg)
        idle = idle + 1 if cfg is before else 0
        if idle == len(PASSES):
            break
    for improve in LAST_PASSES:
        cfg = improve(cfg)
    return cfg
