"""How a header is laid out, as data: the words that the table of encapsulations is written in.

In:  nothing.
Out: classes for a number in a header, a condition, a length, what follows, and for a whole row of the table. Each that can be read from
     bytes has a plain way to do so; the other walks translate it.

- A `Field` is a number in a header; an `Equals` compares one; a `Length` is a number of bytes made of fields.
- What follows a header is an EtherType, whatever number the header itself uses for it. 0x6558, transparent Ethernet
  bridging, stands for an Ethernet frame.
- A header is complete when the fixed part of its length and then its whole length are in the packet.

Offsets count from the first byte of the header that the row describes. Fields have the sizes that BPF can load.
"""

from __future__ import annotations

from pcapext.slotted import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """A number in a header: `size` bytes (1, 2 or 4) at `offset`, most significant first, masked and then shifted right.

    >>> Field(4, 4, 0xFFFFFF00, 8).read(bytes.fromhex("0800000000002a00"), 0)
    42
    """

    offset: int
    size: int
    mask: int = 0xFFFFFFFF
    shift: int = 0

    def __post_init__(self) -> None:
        if self.size not in (1, 2, 4):
            raise ValueError(f"BPF loads 1, 2 or 4 bytes, not {self.size}")

    def read(self, data: bytes, header: int) -> int:
        """The number in the header that begins at `header`; its bytes must be there."""
        start = header + self.offset
        return (int.from_bytes(data[start : start + self.size], "big") & self.mask) >> self.shift

    @property
    def largest(self) -> int:
        """The largest number that it can hold."""
        return (self.mask & ((1 << 8 * self.size) - 1)) >> self.shift


@dataclass(frozen=True, slots=True)
class Equals:
    """Holds where `field` is `value`."""

    field: Field
    value: int

    def holds(self, data: bytes, header: int) -> bool:
        return self.field.read(data, header) == self.value


@dataclass(frozen=True, slots=True)
class IfSet:
    """`length` bytes more where `flag` is not 0."""

    flag: Field
    length: int

    def read(self, data: bytes, header: int) -> int:
        return self.length if self.flag.read(data, header) else 0


@dataclass(frozen=True, slots=True)
class Counted:
    """`unit` bytes more for each one that `count` says."""

    count: Field
    unit: int

    def read(self, data: bytes, header: int) -> int:
        return self.unit * self.count.read(data, header)


@dataclass(frozen=True, slots=True)
class Length:
    """How long a header is. `fixed` bytes must be there to read the rest; the length is `base` plus the `parts`.

    `base` is `fixed` unless given: an authentication header has 12 fixed bytes, its length is 8 + 4 * its length field.
    """

    fixed: int
    parts: tuple[IfSet | Counted, ...] = ()
    base: int = -1

    def __post_init__(self) -> None:
        if self.base < 0:
            object.__setattr__(self, "base", self.fixed)

    def end(self, data: bytes, header: int) -> int | None:
        """The offset of the byte behind the header at `header`, or None where its fixed part is not there."""
        if header + self.fixed > len(data):
            return None
        return header + self.base + sum(part.read(data, header) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Identifier:
    """What `encap NAME ID` compares. It is there where `flag` is not 0, and stands later by the `before` that are there."""

    name: str
    field: Field
    flag: Field | None = None
    before: tuple[IfSet, ...] = ()

    def read(self, data: bytes, header: int) -> int | None:
        """The identifier of the complete header at `header`, or None where it has none."""
        if self.flag is not None and not self.flag.read(data, header):
            return None
        return self.field.read(data, header + sum(part.read(data, header) for part in self.before))


@dataclass(frozen=True, slots=True)
class Always:
    """What follows is always of this EtherType."""

    ethertype: int


@dataclass(frozen=True, slots=True)
class ByEtherType:
    """What follows is of the EtherType in `field`."""

    field: Field


@dataclass(frozen=True, slots=True)
class ByNumber:
    """What follows is told by the number in `field`: pairs of number and EtherType. Any other number is not known."""

    field: Field
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ByNibble:
    """What follows is told by its own first four bits: pairs of nibble and EtherType. Any other nibble is not known."""

    pairs: tuple[tuple[int, int], ...]


Next = Always | ByEtherType | ByNumber | ByNibble


@dataclass(frozen=True, slots=True)
class Prefix:
    """An optional part before a header: it is there where `test` holds, and the bytes to test must be there to know."""

    test: Equals
    length: Length


@dataclass(frozen=True, slots=True)
class Extensions:
    """A chain of extension headers at the end of a header, there where `flag` is not 0.

    `first` is the type of the first one, `length` is each one's length, and its last byte is the type of the next; type 0
    ends the chain. A length of 0 or more headers than `bound` (a setting) mean that the header is not entered.
    """

    flag: Field
    first: Field
    length: Length
    bound: str


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """A kind of header that the walk goes through: a row of the table.

    `words` are the names that `encap` knows it by. Where it is found: behind one of the `ethertypes`; behind one of the
    `ip_protocols`, only in an IP header of EtherType `over` if that is given; behind UDP to the ports of the setting
    `ports`; behind a GRE header of one of the `gre_protocols` for which `gre_test` holds; behind an MPLS stack, where the
    first nibble is one of `nibbles`. It is entered where it is complete and `requires` holds.

    `begins_level`: what follows is the next level. A header in GRE belongs to the tunnel that GRE began.
    `repeats`: where it holds, another header of this kind follows. `bound`: the setting that limits how many are walked in one
    level.
    """

    name: str
    title: str
    standard: str
    next: Next
    length: Length = Length(0)
    words: tuple[str, ...] = ()
    ethertypes: tuple[int, ...] = ()
    ip_protocols: tuple[int, ...] = ()
    over: int | None = None
    ports: str | None = None
    gre_protocols: tuple[int, ...] = ()
    gre_test: Equals | None = None
    nibbles: tuple[int, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    requires: Equals | None = None
    extensions: Extensions | None = None
    identifier: Identifier | None = None
    begins_level: bool = True
    repeats: Equals | None = None
    bound: str | None = None
