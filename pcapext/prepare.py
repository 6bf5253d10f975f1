"""Prepare: the walk and the first questions to it, improved once for all filters that ask the same.

In:  a graph, the link layer, the settings of the walk; the passes that improve a graph.
Out: the graph with the walk in place of everything that a walk tells, after these passes.

Where a filter begins with what only the walk can tell, the walk knows nothing of the filter but its first questions: the tests of what the
walk finds and of nothing else, its *head*. The walk, its head and, wherever that ends, a `Leave` are a graph of their own, in which no
port and no address stands. It is improved without the filter and remembered; the rest of the filter is then put behind it. What
the rest surely loads stands before each `Leave`, so that the walk need not check what the rest will.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from pcapext.cfg import (
    REJECT,
    VOID,
    Among,
    Binary,
    Block,
    Branch,
    Cfg,
    Const,
    Goto,
    Key,
    Label,
    Leave,
    Load,
    Local,
    Operator,
    Passed,
    Return,
    Value,
    live_before,
    liveness,
    loads_of,
    locals_of,
    parts,
    retarget,
    rewrite,
    rewrite_end,
    show,
)
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.lower import in_locals, lower, told_by_walk, wanted_of
from pcapext.slotted import dataclass
from pcapext.unroll import unroll

#: How many walks to remember.
_WALKS = 8


def lower_improved(cfg: Cfg, link_layer: LinkLayer, settings: WalkSettings, improve: Callable[[Cfg], Cfg]) -> Cfg:
    """The graph with the walk in place of everything that a walk tells, improved; the very graph if a walk tells nothing."""
    wanted = wanted_of(cfg)
    if not wanted:
        return cfg
    split = _split(cfg, wanted) if told_by_walk(cfg.blocks[cfg.entry]) else None
    if split is None:
        return improve(lower(cfg, link_layer, settings))
    return _put_behind(_walk(split.head, link_layer, settings, wanted, improve), split)


@dataclass(frozen=True, slots=True)
class _Split:
    """A graph in two parts: the head, of which each block stands at the place that is its label; what of the walk each `Leave` passes
    on, and where the graph goes on behind it; and the blocks from there on.
    """

    head: tuple[Block, ...]
    exits: tuple[tuple[tuple[Local, ...], Label], ...]
    rest: Mapping[Label, Block]


def _split(cfg: Cfg, wanted: frozenset[Key | Passed]) -> _Split | None:
    """The parts of a graph, with locals for what is wanted of the walk; None if the rest, too, tests that: then the walk does better
    with all of it.
    """
    cfg = Cfg(cfg.entry, {label: in_locals(block, wanted) for label, block in cfg.blocks.items()})
    reached = {cfg.entry}
    head: list[Label] = []
    exits: list[Label] = []
    for label in cfg.labels:
        if label in reached:
            asks = _asks_the_walk(cfg.blocks[label])
            reached.update(cfg.blocks[label].targets if asks else ())
            (head if asks else exits).append(label)
    rest = _from(cfg, exits)
    if any(isinstance(block.end, Branch) and _is_told(block) for block in rest.values()):
        return None
    after, loaded = liveness(cfg), _surely_loaded(rest)
    place = {label: index for index, label in enumerate([*head, *exits])}
    blocks = [Block((), retarget(cfg.blocks[label].end, place.__getitem__)) for label in head]
    passed_on = [tuple(sorted(live_before(cfg.blocks[label], after[label]), key=show)) for label in exits]
    for number, label in enumerate(exits):
        loads = sorted(loaded[label] or (), key=show)
        blocks.append(Block(tuple((VOID, load) for load in loads), Leave(number, passed_on[number])))
    return _Split(tuple(blocks), tuple(zip(passed_on, exits, strict=True)), rest)


def _asks_the_walk(block: Block) -> bool:
    """Whether a block asks for nothing but what the walk finds, or gives a verdict."""
    match block:
        case Block((), Return(Const())):
            return True
        case Block((), Goto() | Branch()):
            return all(isinstance(part, Const | Local | Binary | Among) for value in block.values for part in parts(value))
    return False


def _is_told(block: Block) -> bool:
    """Whether what the walk finds may tell the outcome of a block's test: numbers in the packet it does not find."""
    return any(map(locals_of, block.end.values)) and not any(map(loads_of, block.end.values))


def _from(cfg: Cfg, labels: list[Label]) -> dict[Label, Block]:
    """The blocks that can be reached from some, in order."""
    reached = set(labels)
    for label in cfg.labels:
        if label in reached:
            reached.update(cfg.blocks[label].targets)
    return {label: block for label, block in cfg.blocks.items() if label in reached}


def _surely_loaded(blocks: Mapping[Label, Block]) -> dict[Label, frozenset[Load] | None]:
    """What is loaded from places that the walk finds on each way from a block on to acceptance; None where there is no such way."""
    loaded: dict[Label, frozenset[Load] | None] = {}
    for label, block in reversed([*blocks.items()]):
        ways = [way for target in block.targets if (way := loaded[target]) is not None]
        if block == REJECT or (block.targets and not ways):
            loaded[label] = None
        else:
            loads = frozenset(load for value in block.values for load in loads_of(value) if isinstance(load, Load) and locals_of(load))
            loaded[label] = loads.union(frozenset.intersection(*ways) if ways else ())
    return loaded


@lru_cache(_WALKS)
def _walk(
    head: tuple[Block, ...],
    link_layer: LinkLayer,
    settings: WalkSettings,
    wanted: frozenset[Key | Passed],
    improve: Callable[[Cfg], Cfg],
) -> Cfg:
    """A walk and its head, improved."""
    return improve(Cfg(*unroll(dict(enumerate(head)), 0, link_layer, settings, wanted)))


def _put_behind(walk: Cfg, split: _Split) -> Cfg:
    """The whole graph: the rest behind the walk."""
    shift = max(walk.blocks) + 1
    settled = _settled(walk, split)

    def put(value: Value) -> Value:
        return settled.get(value, value) if isinstance(value, Local) else value

    blocks: dict[Label, Block] = {}
    for label, block in split.rest.items():
        assignments = tuple((local, rewrite(value, put)) for local, value in block.assignments)
        blocks[label + shift] = Block(assignments, retarget(rewrite_end(block.end, put), lambda target: target + shift))
    ahead: dict[Label, Label] = {}
    for label in reversed(walk.labels):
        block = walk.blocks[label]
        match block.end:
            case Leave(number, values):
                # The loads that stand before it are the rest's, which does them.
                assert all(local == VOID for local, _ in block.assignments)
                passed_on, following = split.exits[number]
                moves = tuple((local, value) for local, value in zip(passed_on, values, strict=True) if local not in settled)
                if moves:
                    blocks[label] = Block(_at_once(moves), Goto(following + shift))
                else:
                    ahead[label] = following + shift
            case end if not ahead.keys().isdisjoint(end.targets):
                blocks[label] = Block(block.assignments, retarget(end, lambda target: ahead.get(target, target)))
            case _:
                blocks[label] = block
    return Cfg(ahead.get(walk.entry, walk.entry), blocks)


def _settled(walk: Cfg, split: _Split) -> dict[Local, Value]:
    """The locals that have the same value wherever the walk ends, one that costs nothing where it is read."""
    found: dict[Local, set[Value]] = {}
    for block in walk.blocks.values():
        match block.end:
            case Leave(number, values):
                for local, value in zip(split.exits[number][0], values, strict=True):
                    found.setdefault(local, set()).add(value)
    settled: dict[Local, Value] = {}
    for local, possible in found.items():
        match [*possible]:
            case [Const() | Local() | Binary(Operator.ADD, Local(), Const()) as value]:
                settled[local] = value
    return settled


def _at_once(moves: tuple[tuple[Local, Value], ...]) -> tuple[tuple[Local, Value], ...]:
    """Assignments that do the same, in order, as these do all at once."""
    if all(local not in locals_of(value) for index, (local, _) in enumerate(moves) for _, value in moves[index + 1 :]):
        return moves
    aside = [Local(f"aside {local.name}", local.largest) for local, _ in moves]
    kept = tuple((there, value) for there, (_, value) in zip(aside, moves, strict=True))
    return (*kept, *((local, there) for there, (local, _) in zip(aside, moves, strict=True)))
