"""pcapy-ng captures what is inside of tunnels. The import of `pcapy` is all that differs from a script without pcapext.

python examples/pcapy_ng_capture.py examples/tunnels.pcap 'inner tcp port 80'
python examples/pcapy_ng_capture.py eth0 'inner tcp port 80'      # as root; Ctrl-C ends it

It takes pcapy-ng: pip install pcapext[pcapy-ng].
"""

import os
import sys

from pcapext import PcapextError
from pcapext.integrations import pcapy_ng as pcapy

if len(sys.argv) != 3:
    sys.exit(__doc__)
place, filter = sys.argv[1:]
is_file = os.path.exists(place)

try:
    with pcapy.open_offline(place) if is_file else pcapy.open_live(place, 65535, True, 100) as reader:
        reader.setfilter(filter)
        print(f"capturing on {place}", file=sys.stderr)
        while True:
            header, data = reader.next()
            if header is not None:
                seconds, microseconds = header.getts()
                print(f"{seconds}.{microseconds:06} {header.getlen()} bytes", flush=True)
            elif is_file:
                break
except (PcapextError, pcapy.PcapError) as error:
    sys.exit(f"{place}: {error}")
except KeyboardInterrupt:
    pass
