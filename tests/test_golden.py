"""Programs as they are printed, in tests/golden/, for a reader to judge: each file is a command and what it prints.

`PCAPEXT_GOLDEN=rewrite pytest tests/test_golden.py` writes them anew; look at the difference before you keep it.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from pcapext.cli import main

FOLDER = Path(__file__).parent / "golden"

#: The command of each file.
COMMANDS = {
    "inner-protocol": "compile 'inner tcp'",
    "inner-protocol-in-ipv4": "compile 'inner icmp'",
    "inner-protocol-stepped-over": "compile 'inner ah'",
    "inner-network": "compile 'inner ip6'",
    "inner-tcp-port": "compile 'inner tcp port 80'",
    "inner-tcp-port-unoptimized": "compile -O 'inner tcp port 80'",
    "inner-dst-port": "compile 'inner dst port 53'",
    "inner-ports": "compile 'inner tcp port 80 or 443'",
    "inner-portrange": "compile 'inner portrange 1-1024'",
    "inner-host": "compile 'inner host 10.0.0.1'",
    "inner-src-host-ipv6": "compile 'inner src host 2001:db8::1'",
    "inner-net": "compile 'inner ip net 10.0.0.0/8'",
    "inner-ether-host": "compile 'inner ether host 02:00:00:00:00:01'",
    "inner-ether-multicast": "compile 'inner ether multicast'",
    "inner-broadcast": "compile --netmask 24 'inner ip broadcast'",
    "inner-tcp-flags": "compile 'inner tcp[tcpflags] & tcp-syn != 0'",
    "inner-index-of-bytes": "compile 'inner ip[inner ip[0] & 0xf] = 3'",
    "inner-group": "compile 'inner (tcp port 80 or udp port 53)'",
    "not-inner": "compile 'not inner tcp port 80'",
    "tproto": "compile 'inner tproto tcp'",
    "nproto": "compile 'nproto 0x88cc'",
    "poff": "compile 'poff > 54'",
    "len-less-poff": "compile 'len - poff > 0'",
    "shift-by-a-key": "compile '1 << (poff & 3) > 2'",
    "payload": "compile 'payload[0:4] = 0x47455420'",
    "encap": "compile 'encap and inner udp dst port 53'",
    "depth": "compile 'depth > 1 and not inner ip6'",
    "vlan-inner-ip-host": "compile 'vlan 10 and inner tcp and ip host 10.0.0.1'",
    "mpls-inner-raw": "compile -y PPP 'mpls 1024 and inner tcp and ip'",
    "geneve-inner": "compile 'geneve 42 and inner tcp'",
    "length-field-and-poff": "compile -y RAW 'ip[2:2] = poff'",
    "link-and-thoff": "compile 'link[thoff + 13] & 2 != 0'",
    "outer-and-inner-bytes": "compile -y LINUX_SLL 'ip[8] != inner ip[8]'",
    "standard-first": "compile -y LINUX_SLL2 'udp port 4789 and inner tcp port 80'",
    # On a big-endian machine these hold other numbers: bytes of a packet are compared as they stand there.
    "ebpf-standard": "compile -t ebpf 'ip6 and len > 100'",
    "ebpf-cooked": "compile -t ebpf -y LINUX_SLL 'arp or len > 100'",
    "ebpf-outer": "compile -t ebpf 'outer ip6'",
    "ebpf-c": "compile -t ebpf --format c 'arp and ether multicast'",
    "standard-or-inner": "compile -y RAW 'tcp port 80 or inner tcp port 80'",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_golden(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    assert main(shlex.split(command)) == 0
    text = f"$ pcapext {command}\n{capsys.readouterr().out}"
    file = FOLDER / f"{name}.txt"
    if os.environ.get("PCAPEXT_GOLDEN") == "rewrite":
        file.write_text(text)
    assert text == file.read_text()


def test_no_file_is_left_over() -> None:
    # counts.txt is of tests/test_counts.py.
    assert {file.stem for file in FOLDER.iterdir()} == {"counts", *COMMANDS}
