"""Combine: the graphs of single terms to the graph of the filter that has them.

In:  the syntax tree of a filter without extension terms, and for each of its terms a graph.
Out: one graph, which asks the terms from left to right, as libpcap does.

This is for lists that are too long for libpcap. `terms_apart` tells whether a filter is one that can be taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from pcapext.cfg import REJECT, Block, Branch, Cfg, Const, End, Goto, Label, Return
from pcapext.errors import Span
from pcapext.locate import standard_terms
from pcapext.syntax import And, Expression, Group, Not, Or, Qualified, Standard

#: Words of terms that mean the same wherever they stand. Others move the offsets of the terms behind them (libpcap, gencode.c: vlan,
#: mpls, pppoes, geneve, vxlan and lane), or may do so in a libpcap that is to come.
_ALONE = ("less", "greater")


def terms_apart(tree: Expression, expression: str) -> dict[Span, str] | None:
    """The terms of a filter, each as a filter of its own; None where one may change what those behind it mean.

    >>> from pcapext.parser import parse
    >>> text = "tcp and (host 10.0.0.1 or 10.0.0.2)"
    >>> [*terms_apart(parse(text), text).values()]
    ['tcp', 'host 10.0.0.1', 'host 10.0.0.2']
    >>> terms_apart(parse("vlan and tcp"), "vlan and tcp") is None
    True
    """
    pending = [tree]
    while pending:
        match pending.pop():
            case And(left, right) | Or(left, right):
                pending += [left, right]
            case Not(operand) | Group(operand) | Qualified(_, operand):
                pending.append(operand)
            case Standard(word) if word not in _ALONE:
                return None
    return dict(standard_terms(tree, expression))


def combine(tree: Expression, graphs: Mapping[Span, Cfg], snaplen: int) -> Cfg:
    """The graph of a filter. `graphs` has one for the place of each term; it rejects with 0 and accepts with another number."""
    blocks: dict[Label, Block] = {0: Block((), Return(Const(snaplen))), 1: REJECT}
    labels = count(3)
    pending: list[tuple[Expression, Label, Label, Label]] = [(tree, 2, 0, 1)]  # what to ask, by which block, and where to go on
    while pending:
        node, label, then, otherwise = pending.pop()
        match node:
            case And(left, right):
                middle = next(labels)
                pending += [(right, middle, then, otherwise), (left, label, middle, otherwise)]
            case Or(left, right):
                middle = next(labels)
                pending += [(right, middle, then, otherwise), (left, label, then, middle)]
            case Not(operand):
                pending.append((operand, label, otherwise, then))
            case Group(operand) | Qualified(_, operand):
                pending.append((operand, label, then, otherwise))
            case _:
                graph = graphs[node.span]
                places = {each: next(labels) for each in graph.blocks} | {graph.entry: label}
                for each, block in graph.blocks.items():
                    blocks[places[each]] = Block(block.assignments, _placed(block.end, places, then, otherwise))
    return Cfg(2, blocks)


def _placed(end: End, places: Mapping[Label, Label], then: Label, otherwise: Label) -> End:
    """The end of a term's block in the whole graph."""
    match end:
        case Goto(target):
            return Goto(places[target])
        case Branch(test, if_so, if_not):
            return Branch(test, places[if_so], places[if_not])
        case Return(verdict):
            return Goto(otherwise if verdict == Const(0) else then)
    raise AssertionError("no term has a walk")
