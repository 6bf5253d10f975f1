"""Words that are no bytes of the packet, for eBPF: fields of the context, and calls of the kernel's functions.

In:  the name of an ancillary word, or a place in the header that libpcap makes up.
Out: the instructions that load it in r0.
"""

from __future__ import annotations

from pcapext import ebpf
from pcapext.ebpf_walk import PROTOCOL_OF_PACKET
from pcapext.ebpf_writer import R0, R6, Writer
from pcapext.encapsulation import LinkLayer
from pcapext.errors import FilterError

#: Ancillary words by name, and the field of the context with the same number (struct __sk_buff); 2 bytes where they stand as in a packet.
_PKT_TYPE, _MARK, _QUEUE, _VLAN_PRESENT, _VLAN_TCI, _VLAN_PROTOCOL, _IFINDEX, CB, _HASH = 4, 8, 12, 20, 24, 28, 40, 48, 68
_WORDS = {
    "proto": (PROTOCOL_OF_PACKET, 2),
    "type": (_PKT_TYPE, 0),
    "ifidx": (_IFINDEX, 0),
    "mark": (_MARK, 0),
    "queue": (_QUEUE, 0),
    "rxhash": (_HASH, 0),
    "vlan_tci": (_VLAN_TCI, 0),
    "vlanp": (_VLAN_PRESENT, 0),
    "vlan_tpid": (_VLAN_PROTOCOL, 2),
}
_CALLS = {"cpu": ebpf.PROCESSOR, "random": ebpf.RANDOM}

#: What stands in the header that libpcap makes up, by link type, offset and size (pcap/sll.h): ancillary words.
_MADE_UP = {
    (113, 0, 2): "type",
    (113, 14, 2): "proto",
    (276, 0, 2): "proto",
    (276, 4, 4): "ifidx",
    (276, 10, 1): "type",
}


def write_word(to: Writer, name: str) -> None:
    """Load an ancillary word in r0; r6 is the context. Raises `FilterError` for one that eBPF programs cannot ask for."""
    if name in _CALLS:
        to.call(_CALLS[name])
    elif name in _WORDS:
        place, swapped = _WORDS[name]
        to.load(R0, 4, R6, place)
        to.from_network(R0, swapped)
        if name == "ifidx":
            to.jump(R0, "==", 0, "reject")  # a packet without a device, as in classic programs
    else:
        raise FilterError(f"the filter asks for the ancillary word {name}, which an eBPF program cannot ask for")


def made_up_word(link_layer: LinkLayer, offset: int, size: int) -> str:
    """The word that has the bytes of a header that libpcap makes up. Raises `FilterError` where there is none."""
    word = _MADE_UP.get((link_layer.linktype, offset, size))
    if word is None:
        raise FilterError(
            f"byte {offset} of a packet is in the header that libpcap makes up for {link_layer.name}, and the kernel, "
            "where eBPF programs run, has nothing in its place"
        )
    return word
