"""Lower: what only a walk through the headers can tell to the walk itself, for whatever cannot load it.

In:  a graph, what of its values is to be lowered, the link layer, the settings of the walk.
Out: a graph without these values that computes the same verdict.

Of each block there are two versions: one for the ways on which the walk has not run, one for those on which it has. The
first version of a block that needs the walk is the walk, which ends at the second version. So the walk runs at most once
on any way, only where it is needed, and nothing has to remember that it ran. Where several blocks are the first to
need it, they share one walk: a local says at which of them to go on.

Where a walk is one step, as for `ld #keys` and in C, `load_once` places that step in the same way, in each of the blocks that are the
first to need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from pcapext.cfg import (
    KEY_SLOTS,
    VOID,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Key,
    Label,
    Load,
    Local,
    Passed,
    Test,
    Value,
    loads_of,
    parts,
    retarget,
    rewrite,
    rewrite_end,
)
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.flowkeys import FLOW_KEYS

#: Where to go on behind the walk.
RESUME = Local("resume")


def told_by_walk(block: Block) -> frozenset[Key | Passed]:
    """What only a walk tells of the values in a block."""
    return frozenset(part for value in block.values for part in parts(value) if isinstance(part, Key | Passed))


def wanted_of(cfg: Cfg) -> frozenset[Key | Passed]:
    """What only a walk tells of the values in a graph."""
    return frozenset[Key | Passed]().union(*map(told_by_walk, cfg.blocks.values()))


def in_locals(block: Block, told: Set[Key | Passed]) -> Block:
    """The block with locals in place of what the walk tells."""
    from pcapext.unroll import local_for

    return _put(block, {value: local_for(value) for value in told})


def _put(block: Block, locals_: Mapping[Key | Passed, Local]) -> Block:
    def put(value: Value) -> Value:
        return locals_.get(value, value) if isinstance(value, Key | Passed) else value

    assignments = tuple((local, rewrite(value, put)) for local, value in block.assignments)
    return Block(assignments, rewrite_end(block.end, put))


def lower(cfg: Cfg, link_layer: LinkLayer, settings: WalkSettings) -> Cfg:
    """The graph with the walk in place of everything that a walk tells."""
    return _lower(cfg, link_layer, settings, lambda value: True)


def lower_in_place(cfg: Cfg, link_layer: LinkLayer, settings: WalkSettings) -> Cfg:
    """The graph with a walk in place of what no flow key tells: `outer` and `encap NAME`."""
    return _lower(cfg, link_layer, settings, lambda value: isinstance(value, Passed) or value.outer)


def _lower(cfg: Cfg, link_layer: LinkLayer, settings: WalkSettings, is_told: Callable[[Key | Passed], bool]) -> Cfg:
    using = {label: frozenset(filter(is_told, told_by_walk(block))) for label, block in cfg.blocks.items()}
    wanted = frozenset().union(*using.values())
    if not wanted:
        return cfg
    from pcapext.unroll import unroll  # here, since a program that loads flow keys hardly ever needs it

    shift = max(cfg.blocks) + 1
    behind: dict[Label, Block] = {}
    for label, block in cfg.blocks.items():
        lowered = in_locals(block, wanted)
        behind[label + shift] = Block(lowered.assignments, retarget(lowered.end, lambda target: target + shift))
    first = [label for label in _before_walk(cfg, using) if using[label]]
    after = 2 * shift + 1
    for index, label in enumerate(first[:-1]):
        behind[after + index] = Block((), Branch(Test(Comparison.EQ, RESUME, Const(index)), label + shift, after + index + 1))
    behind[after + len(first) - 1] = Block((), Goto(first[-1] + shift))
    walk, unrolled = unroll(behind, after, link_layer, settings, wanted)
    blocks = dict(unrolled)
    for label, block in cfg.blocks.items():
        if label in first:
            assignments = ((RESUME, Const(first.index(label))),) if len(first) > 1 else ()
            blocks[label] = Block(assignments, Goto(walk))
        else:
            blocks[label] = block
    return Cfg(cfg.entry, blocks)


def load_keys(cfg: Cfg) -> Cfg:
    """The graph that loads its flow keys at once, into the first slots of M[] (`ld #keys`); the very graph if it has none."""
    used = {value.name for block in cfg.blocks.values() for value in told_by_walk(block)}
    last = max((number for number, key in enumerate(FLOW_KEYS, 1) if key.name in used), default=0)
    return load_once(cfg, {Key(key.name): local for key, local in zip(FLOW_KEYS[:last], KEY_SLOTS, strict=False)})


def load_once(cfg: Cfg, locals_: Mapping[Key | Passed, Local]) -> Cfg:
    """The graph with locals in place of what the walk tells, which are assigned all together, once at the most on any way. The very
    graph if there are none.
    """
    if not locals_:
        return cfg
    loads = tuple((local, value) for value, local in locals_.items())
    using = {label: told_by_walk(block) for label, block in cfg.blocks.items()}
    shift = max(cfg.blocks) + 1
    blocks = dict(cfg.blocks)
    before = set(_before_walk(cfg, using))
    for label, block in cfg.blocks.items():
        after = _put(block, locals_)
        after = Block(after.assignments, retarget(after.end, lambda target: target + shift))
        blocks[label + shift] = after
        if using[label] and label in before:
            # As late as can be: what stands before it may reject the packet, and so may what stands beside it.
            kept = [old == new for old, new in zip(block.assignments, after.assignments, strict=True)]
            first = [*kept, False].index(False)
            values = (block.assignments[first][1],) if first < len(kept) else block.end.values
            voids = tuple((VOID, load) for value in values for load in _loads_beside(value))
            blocks[label] = Block((*after.assignments[:first], *voids, *loads, *after.assignments[first:]), after.end)
    return Cfg(cfg.entry, blocks)


def _loads_beside(value: Value) -> list[Value]:
    """The loads in a value that are not from where the walk says."""
    return [load for load in loads_of(value) if isinstance(load, Load) and not any(isinstance(part, Key | Passed) for part in parts(load))]


def _before_walk(cfg: Cfg, using: dict[Label, frozenset[Key | Passed]]) -> list[Label]:
    """The blocks that can be reached without a walk, those that begin with one included."""
    reached = {cfg.entry}
    for label in cfg.labels:
        if label in reached and not using[label]:
            reached.update(cfg.blocks[label].targets)
    return [label for label in cfg.labels if label in reached]
