"""Lower: loads of flow keys to the walk itself, for whatever cannot load them.

In:  a graph that loads flow keys, the link layer, the settings of the walk.
Out: a graph without `Key`s that computes the same verdict.

Of each block there are two versions: one for the ways on which the walk has not run, one for those on which it has. The
first version of a block that loads a key is the walk, which ends at the second version. So the walk runs at most once
on any way, only where a key is loaded, and nothing has to remember that it ran. Where several blocks are the first to
load a key, they share one walk: a local says at which of them to go on.
"""

from __future__ import annotations

from pcapext.cfg import (
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    End,
    Goto,
    Key,
    Label,
    Local,
    Return,
    Test,
    Value,
    parts,
    rewrite,
    rewrite_end,
)
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.unroll import Unroller, key_local

#: Where to go on behind the walk.
RESUME = Local("resume")


def lower(cfg: Cfg, link_layer: LinkLayer, settings: WalkSettings) -> Cfg:
    """The graph with the walk in place of the keys."""
    using = {label: _keys(block) for label, block in cfg.blocks.items()}
    wanted = frozenset().union(*using.values())
    if not wanted:
        return cfg
    shift = max(cfg.blocks) + 1
    blocks: dict[Label, Block] = {}
    for label, block in cfg.blocks.items():
        assignments = tuple((local, rewrite(value, _to_local)) for local, value in block.assignments)
        blocks[label + shift] = Block(assignments, _shifted(rewrite_end(block.end, _to_local), shift))
    first = [label for label in _before_walk(cfg, using) if using[label]]
    after = 2 * shift + 1
    walk, unrolled = Unroller(link_layer, settings, wanted, after + len(first), after).build()
    blocks |= unrolled
    for label, block in cfg.blocks.items():
        if label in first:
            assignments = ((RESUME, Const(first.index(label))),) if len(first) > 1 else ()
            blocks[label] = Block(assignments, Goto(walk))
        else:
            blocks[label] = block
    for index, label in enumerate(first[:-1]):
        blocks[after + index] = Block((), Branch(Test(Comparison.EQ, RESUME, Const(index)), label + shift, after + index + 1))
    blocks[after + len(first) - 1] = Block((), Goto(first[-1] + shift))
    return Cfg(cfg.entry, blocks)


def _keys(block: Block) -> frozenset[str]:
    return frozenset(part.name for value in block.values for part in parts(value) if isinstance(part, Key))


def _to_local(value: Value) -> Value:
    return key_local(value.name) if isinstance(value, Key) else value


def _shifted(end: End, shift: int) -> End:
    match end:
        case Goto(target):
            return Goto(target + shift)
        case Branch(test, then, otherwise):
            return Branch(test, then + shift, otherwise + shift)
        case Return():
            return end


def _before_walk(cfg: Cfg, using: dict[Label, frozenset[str]]) -> list[Label]:
    """The blocks that can be reached without a walk, those that begin with one included."""
    reached = {cfg.entry}
    for label in cfg.labels:
        if label in reached and not using[label]:
            reached.update(cfg.blocks[label].targets)
    return [label for label in cfg.labels if label in reached]
