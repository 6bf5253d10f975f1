"""What a descriptor is, and its filter; attaching.py has the rest, on packets that flow."""

from __future__ import annotations

import os
import socket

import pytest
from bpf_oracles import attach

import pcapext
from pcapext.sockets import packet_socket, read_filter

pytestmark = [pytest.mark.root, pytest.mark.kernel]


def test_filters_are_read_back() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as scratch:
        assert read_filter(scratch.fileno()) == b""
        for expression in ("arp", "tcp port 80"):
            program = pcapext.compile(expression)
            attach(scratch, program)
            assert read_filter(scratch.fileno()) == bytes(program)
    with open(os.devnull) as file, pytest.raises(OSError, match="Socket operation on non-socket"):
        read_filter(file.fileno())


@pytest.mark.parametrize("type_", [socket.SOCK_RAW, socket.SOCK_DGRAM])
def test_packet_sockets(type_: int) -> None:
    with socket.socket(socket.AF_PACKET, type_) as one:
        seen = packet_socket(one.fileno())
        assert seen is not None
        assert (seen.family, seen.type, seen.interface, seen.ring) == (socket.AF_PACKET, type_, "", False)


def test_other_descriptors_are_no_packet_sockets() -> None:
    with socket.socket() as stream, open(os.devnull) as file:
        assert packet_socket(stream.fileno()) is None
        assert packet_socket(file.fileno()) is None
    assert packet_socket(-1) is None
