"""Extensions: what pcapext adds to a filter, resolved, and how it stands in for libpcap's eyes.

In:  nothing; these are the types that `resolve`, `mark` and `codegen` hand on.

    Resolved := And | Or | Not | Relation | Encap        (of syntax.py)

A resolved condition has every qualifier filled in and every name made a number; the arithmetic of its relations is made
of numbers, `len`, flow keys and bytes of headers that have a scope. A relation is false on a packet that lacks one of the
headers or bytes it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pcapext.errors import Span
from pcapext.slotted import dataclass
from pcapext.syntax import And, Arithmetic, Encap, Not, Or, Relation

Resolved: TypeAlias = And | Or | Not | Relation | Encap


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the filter that is all pcapext's, and what it means."""

    span: Span
    condition: Resolved


@dataclass(frozen=True, slots=True)
class Operand:
    """A part of the arithmetic in a relation of libpcap's that is pcapext's: `thoff + 13` in `link[thoff + 13] = 2`."""

    span: Span
    value: Arithmetic


@dataclass(frozen=True, slots=True)
class MixedRelation:
    """A relation that needs libpcap for some of its bytes and pcapext for others."""

    span: Span
    operands: tuple[Operand, ...]


Extension: TypeAlias = Term | MixedRelation


@dataclass(frozen=True, slots=True)
class Marked:
    """A text without extensions for libpcap, and what the markers in it stand for.

    `terms` are conditions; `relations` the numbers that a relation of libpcap's reads of pcapext's, by the marker
    that is joined to it; `numbers` these numbers, by the marker in their place.
    """

    text: str
    terms: Mapping[int, Resolved]
    relations: Mapping[int, tuple[Arithmetic, ...]]
    numbers: Mapping[int, Arithmetic]
