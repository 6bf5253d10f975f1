"""Postpone: ask last what only a walk can tell.

In:  the graph of libpcap's program with markers in it, and what the markers stand for.
Out: a graph with the same verdicts, in which terms that every accepted packet must pass come behind all other tests.

`inner tcp and ip6` is `ip6 and inner tcp`: where IPv6 is not there, nobody needs the walk. A term is moved where one outcome of it rejects
the packet and no packet is accepted without the other. Then nothing is lost by asking it later: whatever is asked before it, and
whatever load before it reaches behind the packet, can only reject what is rejected in any case.
"""

from __future__ import annotations

from collections.abc import Set

from pcapext.cfg import REJECT, Block, Branch, Cfg, Comparison, Const, Goto, Label, Length, Return, Test
from pcapext.extension import Marked


def postpone(cfg: Cfg, marked: Marked) -> Cfg:
    """Move the terms that can be moved behind the others, in their order."""
    accepting = {label for label, block in cfg.blocks.items() if isinstance(block.end, Return) and block != REJECT}
    terms = {label: branch for label in cfg.labels if (branch := _term(cfg, label, marked)) and not _reaches(cfg, accepting, without=label)}
    others = {label for label, block in cfg.blocks.items() if isinstance(block.end, Branch) and label not in terms}
    if not any(_reaches(cfg, others, start=label) for label in terms):
        return cfg
    blocks = dict(cfg.blocks)
    for label, branch in terms.items():
        blocks[label] = Block(cfg.blocks[label].assignments, Goto(_passed(cfg, branch)))
    for label in accepting:
        last, place = cfg.blocks[label], max(blocks) + 1
        blocks[label] = Block((), Goto(place))
        for branch in terms.values():
            then, otherwise = (place + 1, branch.otherwise) if _passed(cfg, branch) == branch.then else (branch.then, place + 1)
            blocks[place] = Block((), Branch(branch.test, then, otherwise))
            place += 1
        blocks[place] = last
    return Cfg(cfg.entry, blocks)


def _term(cfg: Cfg, label: Label, marked: Marked) -> Branch | None:
    """The branch of a block that asks for a term and rejects the packet on one side."""
    match cfg.blocks[label].end:
        case Branch(Test(Comparison.GE, Length(), Const(marker)), then, otherwise) as branch if marker in marked.terms:
            if (cfg.blocks[then] == REJECT) != (cfg.blocks[otherwise] == REJECT):
                return branch
    return None


def _passed(cfg: Cfg, branch: Branch) -> Label:
    """Where a term goes on for packets that it does not reject."""
    return branch.otherwise if cfg.blocks[branch.then] == REJECT else branch.then


def _reaches(cfg: Cfg, wanted: Set[Label], start: Label | None = None, without: Label | None = None) -> bool:
    """Whether a way leads from a block, unless told the entry, to one of others, and not through the block `without`."""
    reached = [cfg.entry] if start is None else list(cfg.blocks[start].targets)
    seen = {without}
    while reached:
        label = reached.pop()
        if label not in seen:
            seen.add(label)
            if label in wanted:
                return True
            reached.extend(cfg.blocks[label].targets)
    return False
