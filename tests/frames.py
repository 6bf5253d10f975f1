"""The generated frames that the kernel takes on an interface, and what sockets there see of them.

In:  how many, and a seed.
Out: packets of oracle.py, which has the verdict of any filter on them.
"""

from __future__ import annotations

from everywhere import observed, sample
from oracle import Packet
from packets import EN10MB
from wire import LONGEST, SHORTEST, seen


def receivable(count: int, seed: int) -> list[Packet]:
    """Generated packets, whole and cut, that the kernel takes as frames and shows to sockets."""
    return [
        packet
        for packet in sample(count, seed, [EN10MB])
        if packet.captured == packet.length and SHORTEST <= packet.length <= LONGEST and seen(packet.data) is not None
    ]


def as_seen(packet: Packet) -> Packet:
    """The packet as sockets see it. Where its tag is gone, the reference walk has the word, else the generator."""
    data = seen(packet.data)
    assert data is not None
    return packet if data == packet.data else observed(data)
