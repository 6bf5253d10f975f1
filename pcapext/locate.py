"""Locate: the terms of libpcap's in a filter, each as a filter of its own.

In:  a syntax tree and its text.
Out: pairs of a place and a text to compile alone. The first text that libpcap refuses is the place to point at, since
     libpcap says what is wrong, but not where.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pcapext.errors import Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.syntax import And, Cast, Encap, Expression, Group, Not, Or, Primitive, Protocol, Qualified, Relation, Standard

#: A term from which a value has no qualifiers to inherit, so that libpcap complains about the value.
_NOTHING = "less 0 or"


def standard_terms(tree: Expression, expression: str) -> Iterator[tuple[Span, str]]:
    """The terms in the order of the text; a value without qualifiers gets those of the term before it.

    >>> from pcapext.parser import parse
    >>> text = "tcp port 80 or 443 and inner udp"
    >>> [term for _, term in standard_terms(parse(text), text)]
    ['tcp port 80', 'tcp port 443']
    """
    # What is still to visit, the next one last; a text is the head to go back to behind parentheses.
    pending: list[Expression | str] = [tree]
    # What a value without qualifiers stands behind: those that it inherits; '' if they are of a term of pcapext's.
    head = _NOTHING
    while pending:
        match pending.pop():
            case str(before):
                head = before
            case And(left, right) | Or(left, right):
                pending += [right, left]
            case Not(operand):
                pending.append(operand)
            case Group(operand, None):
                pending += [head, operand]
            case Group():
                pass  # nothing in it is libpcap's
            case Qualified(qualifiers, operand, span):
                ours = qualifiers.scope is not None or qualifiers.kind in EXTENSION_WORDS
                head = "" if ours else expression[span.start : operand.span.start]
                pending.append(operand)
            case Primitive(_, span):
                if head:
                    yield span, f"{head.rstrip()} {expression[span.start : span.end]}"
            case Encap():
                head = _NOTHING
            case Protocol(scope, span=span) | Cast(scope, span=span):
                head = _NOTHING
                if scope is None:
                    yield span, expression[span.start : span.end]
            case Relation(span=span) | Standard(span=span):
                head = _NOTHING
                term = expression[span.start : span.end]
                if not set(re.findall("[a-z]+", term)) & set(EXTENSION_WORDS):
                    yield span, term
                if term == "vxlan":  # before libpcap knew the word, it was a name
                    yield span, f"{_NOTHING} {term}"
