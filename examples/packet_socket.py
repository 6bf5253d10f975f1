"""A plain packet socket whose filter the kernel runs. Needs root (CAP_NET_RAW) and Linux, and no library.

python examples/packet_socket.py eth0 'inner tcp port 80' 10      ten frames
"""

import socket
import sys

import pcapext

ETH_P_ALL = 0x0003

if len(sys.argv) != 4:
    sys.exit(__doc__)
interface, filter, count = sys.argv[1:]

try:
    # Protocol 0: nothing is received until it is bound.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind((interface, ETH_P_ALL))
        # What came in between is thrown away: from here on every frame matches.
        with pcapext.attach(filter, packets) as attachment:
            print(attachment, flush=True)
            for _ in range(int(count)):
                frame, address = packets.recvfrom(1 << 16)
                print(f"{address[0]}: {len(frame)} bytes {frame[:32].hex(' ', 2)}", flush=True)
except (pcapext.PcapextError, OSError) as error:
    sys.exit(f"{interface}: {error}")
