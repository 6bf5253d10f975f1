"""The flow keys: the numbers that the walk through a packet leaves (LANGUAGE.md 2).

In:  nothing.
Out: one table of the keys, and `FlowKeys`, the values of all of them for one packet.

Classic BPF loads a key as an ancillary word, `ld [SKF_AD_OFF + offset]`. `poff` has the offset that the kernel gave
it (SKF_AD_PAY_OFFSET, include/uapi/linux/filter.h); the others stand behind SKF_AD_MAX, 64, so that a stock kernel
refuses a program that holds one of them and can never misread it.

The other way that the discussion had is one load for all of them, `ld [SKF_AD_OFF + 84]`, written `ld #keys`. A says how many keys are
asked for; they are written to M[0], M[1] ..., in the order of the table, and A is then how many were written: no more than there are.
"""

from __future__ import annotations

from pcapext.slotted import dataclass

#: Where the kernel's ancillary words begin (SKF_AD_OFF, include/uapi/linux/filter.h), as an unsigned k.
SKF_AD_OFF = 0xFFFF_F000

#: `lhoff` of a packet whose innermost headers stand in no Ethernet frame. Offset 0 is a real place.
NO_ETHERNET = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class FlowKey:
    """A row of the table: the key's name, its ancillary offset, whether a stock kernel has it, what it means."""

    name: str
    ancillary: int
    meaning: str
    stock: bool = False

    @property
    def k(self) -> int:
        """The operand k of the load."""
        return SKF_AD_OFF + self.ancillary


FLOW_KEYS: tuple[FlowKey, ...] = (
    FlowKey("nhoff", 64, "offset of the innermost network header"),
    FlowKey("nproto", 68, "EtherType of the innermost network header"),
    FlowKey("thoff", 72, "offset of the innermost transport header"),
    FlowKey("tproto", 76, "IP protocol of the innermost network header"),
    FlowKey("poff", 52, "offset of the innermost payload", stock=True),
    FlowKey("depth", 80, "number of tunnels walked through"),
    # Not a word of the language: what `inner ether ...` reads.
    FlowKey("lhoff", 88, "offset of the Ethernet header before the innermost headers, 0xffffffff where there is none"),
)

#: The load of several keys at once into M[]: its name and its operand k.
KEYS_NAME, KEYS_ANCILLARY = "keys", 84
KEYS_K = SKF_AD_OFF + KEYS_ANCILLARY

#: The words that pcapext reserves (LANGUAGE.md 1). A filter without one of them is libpcap's alone.
EXTENSION_WORDS = ("inner", "outer", "encap", "depth", "payload", "nhoff", "nproto", "thoff", "tproto", "poff")

#: The table by name and by k.
KEY_BY_NAME = {key.name: key for key in FLOW_KEYS}
KEY_BY_K = {key.k: key for key in FLOW_KEYS}

#: The operands of all loads that the walk answers.
WALKED_K = frozenset({*KEY_BY_K, KEYS_K})


@dataclass(frozen=True, slots=True)
class FlowKeys:
    """The flow keys of one packet. Offsets are bytes from the start of the link-layer header.

    >>> FlowKeys(nhoff=14, nproto=0x0800, thoff=34, tproto=6, poff=54).depth
    0
    """

    nhoff: int = 0
    nproto: int = 0
    thoff: int = 0
    tproto: int = 0
    poff: int = 0
    depth: int = 0
    lhoff: int = NO_ETHERNET
