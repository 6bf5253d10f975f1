"""dpkt reads what is inside of tunnels. `filtered` around the reader is all that differs from a script without pcapext.

python examples/dpkt_reader.py examples/tunnels.pcap 'inner tcp port 80'

It takes dpkt: pip install pcapext[dpkt].
"""

import sys

import dpkt

from pcapext import PcapextError
from pcapext.integrations.dpkt import filtered

if len(sys.argv) != 3:
    sys.exit(__doc__)
path, filter = sys.argv[1:]

try:
    with open(path, "rb") as file:
        for time, data in filtered(dpkt.pcap.UniversalReader(file), filter):
            frame = dpkt.ethernet.Ethernet(data)
            print(f"{time:.6f} {len(data)} bytes, outermost {type(frame.data).__name__}")
except (PcapextError, OSError, ValueError) as error:  # the last one is dpkt's: no capture
    sys.exit(f"{path}: {error}")
