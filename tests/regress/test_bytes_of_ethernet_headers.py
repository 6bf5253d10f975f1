"""`lhoff` can be 0xffffffff, so no constant was ever folded into a load behind it: `inner ether host` took 27 instructions."""

from __future__ import annotations

from pcapext.compiler import compile


def test_offsets_are_folded_into_loads() -> None:
    assert len(compile("inner ether host 02:00:00:00:00:01")) <= 16
    assert "[x + 12]" in compile("inner ether[12:2] = 0x800").dump()
