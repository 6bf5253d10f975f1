"""The optimizer: passes from graph to graph, one a file, each of which keeps every verdict.

In:  a `Cfg`.
Out: a `Cfg` that rejects and accepts the same packets with less work.

First `gather` makes long lists of tests short. The passes are repeated in their order until a round changes nothing. Then `search`
writes out what `gather` made, and `copy_tails` trades a few instructions for jumps.
"""

from __future__ import annotations

from pcapext.cfg import Cfg
from pcapext.optimize.bounds import drop_bounds
from pcapext.optimize.dead import remove_dead
from pcapext.optimize.gather import gather
from pcapext.optimize.merge import merge
from pcapext.optimize.propagate import propagate
from pcapext.optimize.search import search
from pcapext.optimize.simplify import simplify
from pcapext.optimize.tails import copy_tails
from pcapext.optimize.thread import thread_jumps

PASSES = (simplify, propagate, thread_jumps, drop_bounds, remove_dead, merge)

#: Passes that come last, once: `merge` would undo `copy_tails`, and those behind it clean up.
LAST_PASSES = (search, copy_tails, propagate, simplify, remove_dead)

#: Rounds after which to stop. Each round that changes anything makes the graph smaller or its values simpler.
_MAX_ROUNDS = 100


def optimize(cfg: Cfg, *, first: bool = True, last: bool = True) -> Cfg:
    """The graph after all passes.

    `first` is False for a graph that comes again, and `last` for one that will.
    """
    if first:
        cfg = gather(cfg)
    for _ in range(_MAX_ROUNDS):
        before = cfg
        for improve in PASSES:
            cfg = improve(cfg)
        if cfg == before:
            break
    if last:
        for improve in LAST_PASSES:
            cfg = improve(cfg)
    return cfg
