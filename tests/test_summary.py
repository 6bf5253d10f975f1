"""The line of a packet, against what was put into the packet."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from ipaddress import ip_address

import packets
import pytest

from pcapext.capture import Packet
from pcapext.summary import summarize

NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmp6", 2: "igmp", 50: "esp", 51: "ah", 103: "pim", 112: "vrrp"}


@pytest.fixture(autouse=True, params=["UTC", "Asia/Kathmandu"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The local zone: the hour is not the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_lines_of_generated_packets() -> None:
    for made in packets.packets(2000, seed=9, odd=False):
        keys = made.keys
        if keys.nproto in (0x0800, 0x86DD):
            name, first, size = ("IP", 12, 4) if keys.nproto == 0x0800 else ("IP6", 8, 16)
            place = keys.nhoff + first
            ends = [str(ip_address(made.data[at : at + size])) for at in (place, place + size)]
            if keys.tproto in (6, 17, 132) and keys.thoff:
                ends = [
                    f"{end}.{made.data[at] << 8 | made.data[at + 1]}" for end, at in zip(ends, (keys.thoff, keys.thoff + 2), strict=True)
                ]
            what = f"{name} {ends[0]} > {ends[1]}: {NAMES.get(keys.tproto, f'protocol {keys.tproto}')}"
        elif keys.nproto == 0x0806:
            what = "ARP"
        elif keys.nproto == 0:
            what = "no network header"
        else:
            what = f"EtherType 0x{keys.nproto:04x}"
        tunnels = ["", ", in 1 tunnel", ", in 2 tunnels", ", in 3 tunnels"][keys.depth]
        line = summarize(Packet(0, len(made.data) + 7, made.data, made.linktype))
        assert line.split(" ", 1)[1] == f"{what}, length {len(made.data) + 7}{tunnels}", made


def test_any_cut_has_a_line() -> None:
    for made in packets.packets(200, seed=10):
        for data in packets.truncations(made.data):
            assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} \S.*, length \d+.*", summarize(Packet(0, len(made.data), data, made.linktype)))


@pytest.mark.parametrize(
    ("nanoseconds", "utc", "kathmandu"),
    [
        (0, "00:00:00.000000", "05:30:00.000000"),
        (1_700_000_000_123_456_789, "22:13:20.123456", "03:58:20.123456"),
        (4_102_444_799_999_999_999, "23:59:59.999999", "05:44:59.999999"),
        (9_223_372_036_854_775_807 * 1_000_000_000, "time unknown", "time unknown"),
    ],
)
def test_time_of_day(zone: str, nanoseconds: int, utc: str, kathmandu: str) -> None:
    line = summarize(Packet(nanoseconds, 60, bytes(60), 1))
    assert line == f"{utc if zone == 'UTC' else kathmandu} no network header, length 60"
