"""tshark's view of packets, as flow keys: a dissector that shares nothing with pcapext.

In:  packets with their link types.
Out: for each the keys that follow from the protocols, offsets and lengths that tshark shows, level for level as in
     LANGUAGE.md 5. It means something only where tshark goes through the same headers.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from pcapext.flowkeys import FlowKeys

#: Fragments are shown as they are, and 8472 is known.
OPTIONS = ("-n", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-d", "udp.port==8472,vxlan")

#: What tshark calls headers that begin a level.
TUNNELS = {"vxlan", "geneve", "gre", "gtp", "teredo", "nsh", "etherip", "pwethcw"}
NETWORK = {"ip": 0x0800, "ipv6": 0x86DD, "mpls": 0x8847, "pppoes": 0x8864, "nsh": 0x894F, "arp": 0x0806, "lldp": 0x88CC, "nhrp": 0x2001}
IP = {"ip", "ipv6", "ah"}
ETHERNET = {"eth", "vlan", "ieee8021ad"}
POFF = {1: 8, 2: 8, 17: 8, 33: 12, 58: 8, 132: 12, 136: 8}

PROTOCOL = r'^ {2}<proto name="(?P<protocol>[\w.]+)"'
FIELDS = r"ip\.proto|ipv6\.nxt|ipv6\.\w+\.nxt|ah\.next_header|ip\.frag_offset|ipv6\.fraghdr\.offset|tcp\.hdr_len|arp\.opcode"
PLACE = r'.*? size="(?P<size>\d+)" pos="(?P<pos>\d+)"(?: show="(?P<show>[^"]*)")?'
LINE = re.compile(rf'(?:{PROTOCOL}|<field name="(?P<field>{FIELDS})"){PLACE}', re.MULTILINE)

Packets = Iterable[tuple[bytes, int]]


def pcapng(packets: Packets) -> bytes:
    """A capture file with an interface for each link type (draft-ietf-opsawg-pcapng)."""
    packets = list(packets)
    linktypes = sorted({linktype for _, linktype in packets})
    blocks = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    # In files, raw IP has another number than in libpcap.
    blocks += [_block(1, struct.pack("<HHI", {12: 101}.get(linktype, linktype), 0, 0)) for linktype in linktypes]
    for data, linktype in packets:
        blocks.append(_block(6, struct.pack("<5I", linktypes.index(linktype), 0, 0, len(data), len(data)) + data))
    return b"".join(blocks)


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


def keys_by_tshark(packets: Packets, folder: Path) -> list[FlowKeys]:
    """The keys of each packet; `folder` takes the capture file that tshark reads."""
    file = folder / "packets.pcapng"
    file.write_bytes(pcapng(packets))
    shown = subprocess.run(["tshark", "-r", file, "-T", "pdml", *OPTIONS], capture_output=True, text=True, check=True)
    return [_keys(packet) for packet in shown.stdout.split("<packet>")[1:]]


def _keys(packet: str) -> FlowKeys:
    keys = FlowKeys()
    before, tproto, lines = "", 0, list(LINE.finditer(packet))
    for number, line in enumerate(lines):
        name, offset, end = line["protocol"], int(line["pos"]), int(line["pos"]) + int(line["size"])
        fields = list(takewhile(lambda following: following["field"], lines[number + 1 :]))
        if name in (None, "geninfo", "frame", "raw", "null", "sll", "ppp", "erspan", "fake-field-wrapper"):
            continue
        over_ip = name in ("ip", "ipv6", "eth", "mpls") and before in IP
        over_ethernet = name == "eth" and before in ETHERNET
        if name in TUNNELS or over_ip or over_ethernet or (before, name) == ("udp", "mpls"):
            keys = FlowKeys(depth=keys.depth + 1)
        if name == "eth":
            keys = replace(keys, lhoff=offset)
        elif name in ETHERNET:
            keys = replace(keys, nproto=0x8100, nhoff=offset)
        elif name == "llc":
            return replace(keys, nproto=0, nhoff=0)
        elif name == "arp":
            return replace(keys, nproto=0x8035 if fields[0]["show"] == "3" else 0x0806, nhoff=offset)
        elif name in NETWORK:
            keys = replace(keys, nproto=NETWORK[name], nhoff=offset)
        if name in IP:
            # tshark's IPv6 header includes its extension headers, but for those of a later fragment.
            later = False
            for field in fields:
                if not field["field"].endswith("offset"):
                    tproto = int(field["show"])
                elif int(field["show"]) != 0:
                    later, end = True, end if name == "ip" else int(field["pos"]) + 6
            keys = replace(keys, tproto=tproto, thoff=0 if later else end, poff=end if later else end + POFF.get(tproto, 0))
        elif name == "tcp":
            return replace(keys, poff=offset + int(fields[0]["show"]))
        elif name not in TUNNELS | ETHERNET | NETWORK.keys() | {"udp"}:
            break
        before = name
    return keys
