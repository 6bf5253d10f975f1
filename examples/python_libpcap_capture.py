"""python-libpcap captures what is inside of tunnels. The import is all that differs from a script without pcapext.

python examples/python_libpcap_capture.py examples/tunnels.pcap 'inner tcp port 80'
python examples/python_libpcap_capture.py eth0 'inner tcp port 80'      # as root; Ctrl-C ends it

It takes python-libpcap: pip install pcapext[python-libpcap].
"""

import os
import sys

from pylibpcap.exception import LibpcapError

from pcapext import PcapextError
from pcapext.integrations.python_libpcap import rpcap, sniff

if len(sys.argv) != 3:
    sys.exit(__doc__)
place, filter = sys.argv[1:]

try:
    packets = rpcap(place, filter) if os.path.exists(place) else sniff(place, promisc=1, timeout=100, filters=filter)
    print(f"capturing on {place}", file=sys.stderr)
    for length, time, _ in packets:
        if length:  # otherwise, none came in time
            print(f"{time:.6f} {length} bytes", flush=True)
except (PcapextError, LibpcapError) as error:
    sys.exit(f"{place}: {error}")
except KeyboardInterrupt:
    pass
