"""The list of interfaces, beside what the kernel says of them by other ways."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from libpcaps import each_libpcap, no_descriptor_is_left
from wire import Wire

import pcapext
from pcapext.errors import LibpcapError
from pcapext.pcap_bridge import linktype_number
from pcapext.pcap_devices import Address, Device, devices, linktypes, netmask, timestamp_types

__all__ = ["each_libpcap", "no_descriptor_is_left"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.kernel,
    pytest.mark.tools("ip"),
    pytest.mark.usefixtures("each_libpcap", "no_descriptor_is_left"),
]

#: Where those of the tests are added to what a new namespace has.
COMMANDS = (
    "address add 192.0.2.7/25 broadcast 192.0.2.127 dev right",
    "tuntap add dev tunnel mode tun",
    "address add 198.51.100.1 peer 198.51.100.2/32 dev tunnel",
    "link set left address 02:00:00:00:00:07",
    "link set lo up",
)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    for command in COMMANDS:
        wire.do(run, command)
    yield wire
    wire.close()


def run(command: str) -> str:
    return subprocess.run(["ip", "-json", *command.split()], capture_output=True, text=True, check=True).stdout


def by_name(wire: Wire) -> dict[str, Device]:
    return {device.name: device for device in wire.do(devices)}


def test_names_are_those_of_the_kernel(wire: Wire) -> None:
    found = by_name(wire)
    assert {name for _, name in wire.do(socket.if_nameindex)} <= set(found)
    assert "Pseudo-device" in (found["any"].description or "")
    assert found["any"].addresses == ()


def test_addresses_are_those_of_ip(wire: Wire) -> None:
    found = by_name(wire)
    for entry in json.loads(wire.do(run, "address show")):
        expected = {str(one["local"]) for one in entry["addr_info"]} | ({entry["address"]} if "address" in entry else set())
        assert {str(one.address) for one in found[entry["ifname"]].addresses if one.address} == expected
    right = Address(IPv4Address("192.0.2.7"), IPv4Address("255.255.255.128"), IPv4Address("192.0.2.127"), None)
    assert right in found["right"].addresses
    ether = Address("02:00:00:00:00:07", None, "ff:ff:ff:ff:ff:ff", None)
    assert ether in found["left"].addresses
    tunnel = Address(IPv4Address("198.51.100.1"), IPv4Address("255.255.255.255"), None, IPv4Address("198.51.100.2"))
    assert tunnel in found["tunnel"].addresses


def test_version_6(wire: Wire) -> None:
    """Nothing but the loopback has one: the wire is silent."""
    wire.do(Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text, "0")
    ones = [one for one in by_name(wire)["lo"].addresses if isinstance(one.address, IPv6Address)]
    assert ones == [Address(IPv6Address("::1"), IPv6Address(2**128 - 1), None, None)]


def test_flags(wire: Wire) -> None:
    found = by_name(wire)
    assert (found["lo"].is_loopback, found["lo"].is_up, found["lo"].connection) == (True, True, "not applicable")
    for state, up in (("down", False), ("up", True)):
        wire.do(run, f"link set left {state}")
        left, right = (by_name(wire)[name] for name in ("left", "right"))
        assert (left.is_up, right.is_up, left.is_loopback, left.is_wireless) == (up, True, False, False)
        assert right.connection == ("connected" if up else "disconnected")
        assert right.is_running is up


def test_netmasks(wire: Wire) -> None:
    assert wire.do(netmask, "right") == 0xFFFFFF80
    assert wire.do(netmask, "any") is None
    program = pcapext.compile("ip broadcast", netmask=wire.do(netmask, "right"))
    for last, verdict in ((127, True), (0, True), (126, False)):
        packet = bytes(12) + b"\x08\0\x45" + bytes(15) + bytes([192, 0, 2, last])
        assert program.matches(packet) is verdict


def test_choices(wire: Wire) -> None:
    assert wire.do(linktypes, "right")[0] == linktype_number("EN10MB")
    assert set(wire.do(linktypes, "any")) == {linktype_number("LINUX_SLL"), linktype_number("LINUX_SLL2")}
    for _ in range(3):
        assert wire.do(timestamp_types, "right") in ((), ("host",))


@pytest.mark.parametrize("name", ["nosuch0", "x" * 100])
def test_no_such_device(wire: Wire, name: str) -> None:
    for function in (linktypes, netmask):
        with pytest.raises(LibpcapError, match=f"{name}: No such device exists"):
            wire.do(function, name)
