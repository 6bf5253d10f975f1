"""Mark: put markers that libpcap can compile in place of what it does not know.

In:  the text of a filter and its extensions.
Out: a text for libpcap, and what each marker in it stands for.

A term becomes `(greater N)`, and the block `ld #pktlen; jge #N` of the program that libpcap makes is its place. A number
of pcapext's in a relation of libpcap's becomes `(1 * N)`, and the relation is joined with a marker of its own, which is
where the packet is asked for the headers that the number is read from. Each N occurs nowhere else. What libpcap does
from left to right (`vlan` and `mpls` move offsets, values inherit qualifiers) stays libpcap's; the parentheses keep
a marker from changing what is inherited. The factor 1 is for libpcap's check of shifts by a constant, which looks at
the first number of the right operand (gencode.c, gen_arth).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count

from pcapext.extension import Extension, Marked, MixedRelation, Resolved, Term
from pcapext.syntax import Arithmetic

#: `greater` takes an int (gencode.c, gen_greater): markers stay below 2**31.
_FIRST = 0x6500_0000


def _numbers(expression: str) -> set[int]:
    """The numbers that digits in a text may stand for (scanner.l, stou); long rows of digits are no numbers below 2**32."""
    found = set()
    for prefix, digits in re.findall(r"(0[xX](?=[0-9a-fA-F])|)0*([0-9a-fA-F]+)", expression):
        for base in (16,) if prefix else (8, 10):
            if len(digits) <= 11 and set(digits.lower()) <= set("0123456789abcdef"[:base]):
                found.add(int(digits, base))
    return found


def mark(expression: str, extensions: Sequence[Extension]) -> Marked:
    """Replace the extensions, which are in the order of the text."""
    taken = _numbers(expression)
    numbering = (number for number in count(_FIRST) if number not in taken)
    terms: dict[int, Resolved] = {}
    relations: dict[int, tuple[Arithmetic, ...]] = {}
    numbers: dict[int, Arithmetic] = {}
    pieces: list[str] = []
    at = 0

    def put(start: int, end: int, text: str) -> None:
        nonlocal at
        pieces.extend((expression[at:start], text))
        at = end

    for extension in extensions:
        marker = next(numbering)
        match extension:
            case Term(span, condition):
                terms[marker] = condition
                put(span.start, span.end, f"(greater {marker})")
            case MixedRelation(span, operands):
                relations[marker] = tuple(operand.value for operand in operands)
                put(span.start, span.start, f"(greater {marker} and ")
                for operand in operands:
                    number = next(numbering)
                    numbers[number] = operand.value
                    put(operand.span.start, operand.span.end, f"(1 * {number})")
                put(span.end, span.end, ")")
    return Marked("".join((*pieces, expression[at:])), terms, relations, numbers)
