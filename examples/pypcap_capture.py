"""pypcap captures what is inside of tunnels. The import of `pcap` is all that differs from a script without pcapext.

python examples/pypcap_capture.py examples/tunnels.pcap 'inner tcp port 80'
python examples/pypcap_capture.py eth0 'inner tcp port 80'      # as root; Ctrl-C ends it

It takes pypcap: pip install pcapext[pypcap].
"""

import sys

from pcapext import PcapextError
from pcapext.integrations import pypcap as pcap

if len(sys.argv) != 3:
    sys.exit(__doc__)
place, filter = sys.argv[1:]

try:
    capture = pcap.pcap(place, timeout_ms=100)
    capture.setfilter(filter)
    print(f"capturing on {place}", file=sys.stderr)
    for time, data in capture:
        print(f"{time:.6f} {len(data)} bytes", flush=True)
except (PcapextError, OSError) as error:  # the last one is pypcap's
    sys.exit(f"{place}: {error}")
except KeyboardInterrupt:
    pass
