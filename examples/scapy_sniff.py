"""scapy sniffs what is inside of tunnels. The import is the one line that differs from a script without pcapext.

python examples/scapy_sniff.py examples/tunnels.pcap 'inner tcp port 80'      a capture
python examples/scapy_sniff.py eth0 'encap vxlan 42 and inner icmp'           an interface, as root, until Ctrl-C

It takes scapy: pip install pcapext[scapy].
"""

import sys
from pathlib import Path

from pcapext import PcapextError
from pcapext.integrations.scapy import sniff

if len(sys.argv) != 3:
    sys.exit(__doc__)
place, filter = sys.argv[1:]

try:
    sniff(
        filter=filter,
        prn=lambda packet: packet.summary(),
        store=False,
        started_callback=lambda: print("sniffing", place, file=sys.stderr, flush=True),
        **({"offline": place} if Path(place).exists() else {"iface": place}),
    )
except (PcapextError, OSError, ValueError) as error:  # the last two are scapy's: no such interface, no permission
    sys.exit(f"{place}: {error}")
