"""Times in the engine, beside Python's integers, which have no end."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pcapext.engine import ffi, lib

SECOND = 10**9
U64, I64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
RESOLUTIONS = st.one_of(
    st.integers(0, 19).map(lambda digits: 10**digits), st.integers(0, 63).map(lambda bits: 1 << bits), st.integers(1, 2**64 - 1)
)
#: Seconds from 1970 to the ends of what 64 bits hold in nanoseconds.
EDGE = 2**63 // SECOND


def held(nanoseconds: int) -> int:
    return max(-(2**63), min(2**63 - 1, nanoseconds))


@given(U64, RESOLUTIONS, st.one_of(st.just(0), st.integers(-EDGE - 2, -EDGE + 2), I64))
@example(2**64 - 1, 2**63, 0)
@example(2**63 - 1, 2**63, -EDGE)
@example(900_000_000, SECOND, -EDGE - 1)
@example(100_000_000, SECOND, -EDGE - 1)
@example(2**64 - 1, 1, 2**63 - 1)
@example(0, 1, -(2**63))
def test_time_of_pcapng(ticks: int, resolution: int, offset: int) -> None:
    clock = ffi.new("struct clock *", (resolution, 0, offset))
    assert lib.time_ns(clock, ticks) == held(ticks * SECOND // resolution + offset * SECOND)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([1, 1000]))
def test_time_of_pcap(seconds: int, fraction: int, unit: int) -> None:
    clock = ffi.new("struct clock *", (0, unit, 0))
    assert lib.time_ns(clock, seconds << 32 | fraction) == seconds * SECOND + fraction * unit
