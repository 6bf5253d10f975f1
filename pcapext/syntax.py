"""The syntax tree: what `parser.py` builds from the text of a filter and `resolve.py` reads.

In:  nothing; these are the types.
Out: frozen nodes, each with the `Span` of text it was read from.

    Expression := And | Or | Not | Group | Qualified | Primitive | Protocol | Cast | Relation
                | Encap | Standard
    Arithmetic := Number | Length | KeyValue | Access | Payload | Binary | Negate
    Value      := Name | Number | Ipv4 | Ipv6 | Mac | Arcnet

The tree says what was written and nothing more. A `Primitive` with no `Qualified` around it inherits the qualifiers
of the term before it (`tcp port 80 or 443`); `resolve.py` fills them in. Trees can be as deep as the text is long, so
whatever walks them does so without recursion. Only arithmetic has a bound, `ARITHMETIC_DEPTH`, kept by the parser.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pcapext.errors import Span
from pcapext.slotted import dataclass

Scope = Literal["inner", "outer"]

#: How deep arithmetic may nest. libpcap gives up earlier, when its 16 M[] slots are used up (gencode.c, alloc_reg).
ARITHMETIC_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Name:
    """A name of a host, network, port or protocol, without the backslash that may have escaped it."""

    text: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number below 2**32, written in decimal, octal (0...) or hexadecimal (0x...), or by name (`tcp-syn`)."""

    value: int
    span: Span


@dataclass(frozen=True, slots=True)
class Ipv4:
    """Two to four numbers with dots, with the prefix length or the mask that may follow it."""

    text: str
    prefix: int | None = None
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Ipv6:
    """An IPv6 address, with the prefix length that may follow it."""

    text: str
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class Mac:
    """A MAC address, in any of the forms that libpcap reads."""

    text: str


@dataclass(frozen=True, slots=True)
class Arcnet:
    """An ARCnet address: a dollar sign and two hexadecimal digits."""

    text: str


Value: TypeAlias = Name | Number | Ipv4 | Ipv6 | Mac | Arcnet


@dataclass(frozen=True, slots=True)
class Qualifiers:
    """The qualifiers before a value; None where one is not written.

    `protocol` is libpcap's word (`ether` for both ether and link), `direction` one of
    src, dst, "src or dst", "src and dst", ra, ta, addr1 to addr4, and `kind` one of host, net, port, portrange, proto,
    protochain, gateway, tproto, nproto.
    """

    scope: Scope | None = None
    protocol: str | None = None
    direction: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class And:
    """Both hold. `and` and `or` have one precedence and group to the left."""

    left: Expression
    right: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Or:
    """One of them holds."""

    left: Expression
    right: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    operand: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Group:
    """Parentheses, with the scope before them: what stands in `inner ( ... )` is taken as `inner`."""

    operand: Expression
    scope: Scope | None
    span: Span


@dataclass(frozen=True, slots=True)
class Qualified:
    """Qualifiers and the values they are for: `tcp port 80`, `src host (a or b)`."""

    qualifiers: Qualifiers
    operand: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Primitive:
    """One value: its qualifiers are those of the `Qualified` it stands in, or of the term before it."""

    value: Value
    span: Span


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol alone: `tcp`, `inner ip6`."""

    scope: Scope | None
    protocol: str
    span: Span


@dataclass(frozen=True, slots=True)
class Cast:
    """`broadcast` or `multicast`, with the protocol before it."""

    scope: Scope | None
    protocol: str | None
    cast: Literal["broadcast", "multicast"]
    span: Span


RelationOperator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Relation:
    """A comparison of two numbers."""

    operator: RelationOperator
    left: Arithmetic
    right: Arithmetic
    span: Span


@dataclass(frozen=True, slots=True)
class Encap:
    """`encap`, `encap NAME`, `encap NAME ID`."""

    name: str | None
    identifier: int | None
    span: Span


@dataclass(frozen=True, slots=True)
class Standard:
    """A term that only libpcap gives a meaning to (`vlan 10`, `less 100`, `type mgt`, ...), by its first word."""

    word: str
    span: Span


Expression: TypeAlias = And | Or | Not | Group | Qualified | Primitive | Protocol | Cast | Relation | Encap | Standard


@dataclass(frozen=True, slots=True)
class Length:
    """`len`: the length of the packet on the wire."""

    span: Span


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A flow key as a number."""

    scope: Scope | None
    key: str
    span: Span


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes of a header: `ip[2:2]`, `inner tcp[13]`. `size` is 1, 2 or 4 in a valid filter."""

    scope: Scope | None
    protocol: str
    index: Arithmetic
    size: int
    span: Span


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes from the payload on: `payload[0:4]`."""

    scope: Scope | None
    index: Arithmetic
    size: int
    span: Span


ArithmeticOperator = Literal["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic on 32-bit unsigned numbers."""

    operator: ArithmeticOperator
    left: Arithmetic
    right: Arithmetic
    span: Span


@dataclass(frozen=True, slots=True)
class Negate:
    """The two's complement."""

    operand: Arithmetic
    span: Span


Arithmetic: TypeAlias = Number | Length | KeyValue | Access | Payload | Binary | Negate
