"""libpcap's handles on interfaces: capturing live.

In:  names of interfaces, and settings.
Out: packets as they come in. Errors are `LibpcapError` with libpcap's words.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from pcapext.errors import LibpcapError
from pcapext.pcap_bridge import ERRBUF_SIZE, libpcap, string

#: The link type of Ethernet, DLT_EN10MB.
_ETHERNET = 1

#: What `pcap_activate` returns (pcap/pcap.h): PCAP_ERROR, which stands for libpcap's words alone, and PCAP_ERROR_PERM_DENIED.
_ERROR, _PERM_DENIED = -1, -8


def open_ethernet(snaplen: int) -> Any:
    """An activated `pcap_t *` on any interface with Ethernet frames, the loopback first: something to compile on."""
    ffi, lib = libpcap().ffi, libpcap().lib
    words = "there is no interface"
    errbuf = ffi.new("char[]", ERRBUF_SIZE)
    for name in sorted((name for _, name in socket.if_nameindex()), key="lo".__ne__):
        pcap = lib.pcap_create(os.fsencode(name), errbuf)
        if not pcap:
            words = string(errbuf)
            continue
        lib.pcap_set_snaplen(pcap, snaplen)
        lib.pcap_set_buffer_size(pcap, 1)  # it becomes the least that there can be
        status = lib.pcap_activate(pcap)
        if status >= 0 and lib.pcap_datalink(pcap) == _ETHERNET:
            return pcap
        words = f"{name}: " + (activation_words(pcap, status) if status < 0 else "it has no Ethernet frames")
        lib.pcap_close(pcap)
        if status == _PERM_DENIED:
            break
    raise LibpcapError(f"'vlan' for a live capture is compiled on a live interface, and none can be opened: {words}")


def activation_words(pcap: Any, status: int) -> str:
    """What libpcap says of the status that `pcap_activate` returned: its words for the status, and those for the case."""
    lib = libpcap().lib
    words, case = string(lib.pcap_statustostr(status)), string(lib.pcap_geterr(pcap))
    if status == _ERROR and case:
        return case
    if case and case not in words:
        words = f"{words}: {case}"
    if status == _PERM_DENIED and sys.platform == "linux" and "CAP_NET_RAW" not in words:
        words += " (it takes the capability CAP_NET_RAW)"
    return words
