"""The optimizer: passes from graph to graph, one a file, each of which keeps every verdict.

In:  a `Cfg`.
Out: a `Cfg` that rejects and accepts the same packets with less work.

First `gather` makes long lists of tests short. Then the passes go round in their order until there is next to nothing left to do. Then
`search` writes out what `gather` made, blocks are joined, and `copy_tails` trades a few instructions for jumps.
"""

from __future__ import annotations

from pcapext.cfg import Cfg
from pcapext.optimize.bounds import drop_bounds
from pcapext.optimize.dead import remove_dead
from pcapext.optimize.gather import gather
from pcapext.optimize.join import join
from pcapext.optimize.merge import merge
from pcapext.optimize.propagate import propagate
from pcapext.optimize.search import search
from pcapext.optimize.simplify import simplify
from pcapext.optimize.tails import copy_tails
from pcapext.optimize.thread import thread_jumps

PASSES = (simplify, propagate, thread_jumps, drop_bounds, remove_dead, merge)

#: Passes that come last, once: `join` hides equal tails from `merge`, which would undo `copy_tails`, and the others clean up.
LAST_PASSES = (search, join, merge, copy_tails, propagate, simplify, remove_dead)

#: Rounds after which to stop. Each round that changes anything makes the graph smaller or its values simpler.
_MAX_ROUNDS = 100

#: Another round is worth its time if the last one changed more than one block of so many.
_FEW = 40


def optimize(cfg: Cfg) -> Cfg:
    """The graph after all passes."""
    return finish(improve(gather(cfg)))


def improve(cfg: Cfg) -> Cfg:
    """The graph after the passes that are repeated."""
    for _ in range(_MAX_ROUNDS):
        changes = 0
        for run in PASSES:
            before, cfg = cfg, run(cfg)
            changes += _changes(before, cfg)
        if changes * _FEW <= len(cfg.blocks):
            break
    return cfg


def finish(cfg: Cfg) -> Cfg:
    """The graph after the passes that come last."""
    for run in LAST_PASSES:
        cfg = run(cfg)
    return cfg


def _changes(before: Cfg, after: Cfg) -> int:
    """How many blocks of a graph a pass changed."""
    return 0 if after is before else sum(after.blocks.get(label) is not block for label, block in before.blocks.items())
