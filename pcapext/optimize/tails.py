"""Copy tails: a short end of the graph is written once for each block that would jump to it.

In:  a `Cfg` that the other passes have no more to do with.
Out: the same graph, where no block goes on without a test to a tail: at most `_LONGEST` tests that lead to nothing but each
     other and verdicts. The copies cost few instructions, save a jump each, and may hold more constants than the one tail did.
"""

from __future__ import annotations

from itertools import count

from pcapext.cfg import Block, Branch, Cfg, End, Goto, Label, Return

#: How many tests a tail may have.
_LONGEST = 4


def copy_tails(cfg: Cfg) -> Cfg:
    """The graph with short tails copied."""
    tails: dict[Label, set[Label] | None] = {}
    for label in reversed(cfg.labels):
        tails[label] = _tail(label, cfg.blocks[label], tails)
    blocks = dict(cfg.blocks)
    labels = count(max(blocks) + 1)

    def copy(label: Label, copies: dict[Label, Label]) -> Label:
        match cfg.blocks[label].end:
            case Return():
                return label
        if label not in copies:
            copies[label] = next(labels)
            blocks[copies[label]] = Block((), end_of(label, copies))
        return copies[label]

    def end_of(label: Label, copies: dict[Label, Label]) -> End:
        match cfg.blocks[label].end:
            case Branch(test, then, otherwise):
                return Branch(test, copy(then, copies), copy(otherwise, copies))
            case end:
                return end

    for label, block in cfg.blocks.items():
        match block.end:
            case Goto(target) if tails[target] is not None:
                blocks[label] = Block(block.assignments, end_of(target, {}))
    return cfg.with_blocks(blocks)


def _tail(label: Label, block: Block, tails: dict[Label, set[Label] | None]) -> set[Label] | None:
    """The tests of the tail that begins with a block, or None if no tail does."""
    match block:
        case Block((), Return()):
            return set()
        case Block((), Branch(_, then, otherwise)):
            after_then, after_otherwise = tails[then], tails[otherwise]
            if after_then is None or after_otherwise is None:
                return None
            tests = {label} | after_then | after_otherwise
            return tests if len(tests) <= _LONGEST else None
    return None
