"""A filter as C source: what `compile` gives for the target `c`.

In:  the text of a C function, and what it was made from.
Out: a `CSource`: immutable, and nothing more than that. What the function does is written at its head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcapext.slotted import dataclass

if TYPE_CHECKING:
    from pcapext.encapsulation import WalkSettings


@dataclass(frozen=True, slots=True)
class CSource:
    """A filter as C source, and what it was made from: as in `pcapext.bpf.Program`, of which it has the other fields.

    `text` defines one function, which returns how many bytes of a packet to keep, 0 where the packet does not match:

        uint32_t filter(const uint8_t *data, const uint8_t *data_end, uint32_t wirelen)

    `data_end` is behind the last byte that was captured, `wirelen` the number of bytes on the wire. Any compiler of C99, C11 or C++ takes
    it and needs nothing but <stdint.h>. `clang -O2 -target bpf` needs nothing; there the function is static, to be called by a program in
    the same file, and looks at the first 32767 bytes of a packet. It has bounded loops, which the kernel takes from Linux 5.3 on.
    """

    text: str
    linktype: int
    snaplen: int
    expression: str
    settings: WalkSettings | None = None

    def __post_init__(self) -> None:
        if self.settings is not None and self.settings == type(self.settings)():
            object.__setattr__(self, "settings", None)

    def dump(self) -> str:
        """The text."""
        return self.text
