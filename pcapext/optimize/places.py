"""Places in a packet, told by a base and a distance: the load of 2 bytes at H + 12 ends 14 behind H.

In:  the offset of a load, or a load.
Out: the base that the offset is counted from, and how far behind it the place is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from pcapext.cfg import LONGEST_PACKET, REMEMBERED, Binary, Const, Load, Operator, Value, maximum

#: A place in a packet: so far behind this base; the base None is the begin of the packet.
Place: TypeAlias = tuple[Value | None, int]


@lru_cache(REMEMBERED)
def place_behind(offset: Value, more: int) -> Place:
    """offset + more, where that does not wrap around.

    >>> place_behind(Const(14), 2)
    (None, 16)
    """
    match offset:
        case Const(number):
            return None, number + more
        case Binary(Operator.ADD, base, Const(distance)) if maximum(base) + distance <= LONGEST_PACKET:
            return base, distance + more
    return offset, more


def end_of(load: Load) -> Place:
    """Where the bytes of a load end."""
    return place_behind(load.offset, load.k + load.size)
