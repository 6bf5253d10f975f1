"""cypcap captures what is inside of tunnels. The import is all that differs from a script without pcapext.

python examples/cypcap_capture.py examples/tunnels.pcap 'inner tcp port 80'
python examples/cypcap_capture.py eth0 'inner tcp port 80'      # as root; Ctrl-C ends it

It takes cypcap: pip install pcapext[cypcap].
"""

import os
import sys

from pcapext import PcapextError
from pcapext.integrations import cypcap

if len(sys.argv) != 3:
    sys.exit(__doc__)
place, filter = sys.argv[1:]

try:
    with cypcap.open_offline(place) if os.path.exists(place) else cypcap.open_live(place, 65535, True, 0.1) as pcap:
        pcap.setfilter(filter)
        print(f"capturing on {place}", file=sys.stderr)
        for header, _ in pcap:
            if header is not None:  # on an interface, none came in time
                print(f"{header.ts:.6f} {header.len} bytes", flush=True)
except (PcapextError, cypcap.Error) as error:
    sys.exit(f"{place}: {error}")
except KeyboardInterrupt:
    pass
