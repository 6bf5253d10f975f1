"""The walk as a function of an eBPF program: a bounded loop over the headers of a packet.

In:  a link layer, the settings of the walk, and where to put what is wanted of it.
Out: instructions, from the label `WALK` on, of a function that takes the context in r1 and in r2 the place for what it finds.

The walk goes from header to header. At each, the first bytes of it are brought from the packet to the stack, the *window*, and what is
read of the header is read there, where it is known how many bytes of the packet are left. The code for a kind of header is made from its
row of encapsulation.py; it puts down the keys that it is sure of, moves to the next header and says of what kind that is. All
else is an end: what was put down so far is the answer. So a tunnel whose header is not complete leaves the keys of its carrier, and no
header is looked at twice.

    r6  the context                      r8  the kind of the header: its EtherType; its IP protocol with IN_IPV4 or IN_IPV6; or
    r7  the place of the header              FIRST_STATE and more, the states that are neither
    r0  the bytes left from there        r9  the place for what is found

The verifier (kernel/bpf/verifier.c) follows every path, and takes two states for the same only where what it knows of the registers
agrees. So it must know little. A number loses what is known of it where it is stored to the stack at a place that no register would be
stored to, and loaded again: the place of the header is stored and loaded at the head of the loop, and counters stand at such places.
`may_goto` spares it to see that the loop ends. It does, as there are so many levels, and so many headers in each.

    builder   blocks of code, fields in the window, the places for what is found
    tunnels   the headers that begin a level
    levels    the loop and all other headers
"""

from __future__ import annotations

from pcapext.ebpf_walk.builder import LENGTH_OF_PACKET, PROTOCOL_OF_PACKET, WALK, Findings, as_in_packet
from pcapext.ebpf_walk.levels import Levels
from pcapext.ebpf_writer import Writer
from pcapext.encapsulation import LinkLayer, WalkSettings

__all__ = ["LENGTH_OF_PACKET", "PROTOCOL_OF_PACKET", "WALK", "Findings", "as_in_packet", "write_walk"]


def write_walk(link_layer: LinkLayer, settings: WalkSettings, findings: Findings) -> Writer:
    """The instructions of the function."""
    return Levels(link_layer, settings, findings).written()
