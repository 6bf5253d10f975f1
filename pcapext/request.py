"""Request: what is to be compiled, and for what.

In:  the arguments of `compile`.
Out: a `Request`, which all steps of the compiler read. One that asks for what there is not cannot be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcapext import pcap_bridge
from pcapext.bpf import CLASSIC_TARGETS, MAXIMUM_SNAPLEN, Instruction
from pcapext.errors import FilterError
from pcapext.slotted import dataclass

if TYPE_CHECKING:
    from pcapext.encapsulation import LinkLayer, WalkSettings

#: The forms of program that there are (DESIGN.md 2).
TARGETS = (*CLASSIC_TARGETS, "ebpf", "c")


@dataclass(frozen=True, slots=True)
class Request:
    """An expression, and what it is compiled for: DLT number, snap length, netmask (None: not known), how much to optimize (0 to 2),
    target.

    `settings` are those of the walk, None for the usual ones. `byteorder`, "<" or ">", is that of the capture file whose packets it is for,
    None outside of files. `live`: for packets as a Linux kernel shows them to filters.
    """

    expression: str
    linktype: int
    snaplen: int = MAXIMUM_SNAPLEN
    netmask: int | None = None
    optimize: int = 1
    target: str = "flowkeys"
    settings: WalkSettings | None = None
    byteorder: str | None = None
    live: bool = False

    def __post_init__(self) -> None:
        if self.optimize not in (0, 1, 2):
            raise FilterError(f"optimize is {self.optimize!r}, expected 0, 1 or 2")
        if self.target not in TARGETS:
            raise FilterError(f"unknown target '{self.target}', expected one of {', '.join(TARGETS)}")

    @property
    def link_layer(self) -> LinkLayer | None:
        """Where a walk starts; None where there is none on the link type."""
        from pcapext.encapsulation import LINK_LAYER_BY_NUMBER

        return LINK_LAYER_BY_NUMBER.get(self.linktype)

    @property
    def walk(self) -> WalkSettings:
        """The settings of the walk."""
        from pcapext.encapsulation import DEFAULT_SETTINGS

        return self.settings or DEFAULT_SETTINGS

    def by_libpcap(self, expression: str, optimize: bool | None) -> tuple[Instruction, ...]:
        """libpcap's program for a standard expression, compiled for the same as this one. The rest is as in `compile_expression`."""
        return pcap_bridge.compile_expression(expression, self.linktype, self.snaplen, self.netmask, optimize, self.byteorder, self.live)
