"""Weaken: what libpcap can say of a filter with extension terms.

In:  the text of a filter, its syntax tree and its extensions.
Out: a text without extension terms that accepts every packet that the filter accepts, or None where that would be every packet at all.

It is for libraries that give their own libpcap an expression and nothing else: what that rejects, pcapext need not look at. A term of
pcapext's becomes one that always holds, under an odd number of `not` one that never holds. The rest of the text stays as it is, so that
what libpcap does from left to right (`vlan` and `mpls` move offsets, values inherit qualifiers) stays what it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from pcapext.errors import Span
from pcapext.extension import Extension
from pcapext.syntax import And, Expression, Group, Not, Or, Qualified

#: No packet is longer than the second number; `greater` takes an int (gencode.c, gen_greater).
_HOLDS = {True: "(greater 0)", False: f"(greater {0x7FFF_FFFF})"}


def weaken(expression: str, tree: Expression, extensions: Sequence[Extension]) -> str | None:
    """The weaker text; `extensions` are in the order of the text.

    >>> from pcapext.parser import parse
    >>> from pcapext.resolve import resolve
    >>> for text in ("tcp and not (ip and inner udp)", "ip or inner tcp"):
    ...     tree = parse(text)
    ...     print(weaken(text, tree, resolve(text, tree)))
    tcp and not (ip and (greater 2147483647))
    None
    """
    starts = [extension.span.start for extension in extensions]
    put: dict[Span, bool] = {}
    # What is known of the parts that were visited: True for what holds for every packet, None where libpcap decides.
    known: list[bool | None] = []
    # A tree may be as deep as the text is long: no recursion.
    steps: list[Callable[[], None]] = []

    def visit(node: Expression, value: bool) -> None:
        place = bisect_right(starts, node.span.start) - 1
        if place >= 0 and node.span.end <= extensions[place].span.end:
            put[extensions[place].span] = value
            known.append(value)
            return
        match node:
            case And(left, right) | Or(left, right):
                steps.extend((partial(join, decides=isinstance(node, Or)), partial(visit, right, value), partial(visit, left, value)))
            case Not(operand):
                steps.extend((negate, partial(visit, operand, not value)))
            case Group(operand) | Qualified(operand=operand):
                steps.append(partial(visit, operand, value))
            case _:
                known.append(None)

    def join(decides: bool) -> None:
        """`decides`: the value of one side that decides for both."""
        right, left = known.pop(), known.pop()
        if decides in (left, right):
            known.append(decides)
        else:
            known.append(None if None in (left, right) else not decides)

    def negate() -> None:
        operand = known.pop()
        known.append(None if operand is None else not operand)

    visit(tree, True)
    while steps:
        steps.pop()()
    if known == [True]:
        return None
    pieces, at = [], 0
    for extension in extensions:
        pieces += [expression[at : extension.span.start], _HOLDS[put[extension.span]]]
        at = extension.span.end
    return "".join((*pieces, expression[at:]))
