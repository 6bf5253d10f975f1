#!/bin/sh
# Counts the packets that a filter matches in XDP, before the kernel has looked at them; as root:
#
#   examples/xdp/count.sh                              'inner tcp port 80' on examples/tunnels.pcap
#   examples/xdp/count.sh CAPTURE.pcap 'EXPR'
#
# It makes a network namespace with a pair of interfaces, loads the program (count.c) on one of them, sends the capture's packets from the
# other, prints the counts and removes all of it. It needs clang, iproute2 and bpftool. PYTHON is the Python that has pcapext.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
python=${PYTHON:-python3}
capture=${1:-$here/../tunnels.pcap}
expression=${2:-inner tcp port 80}

work=$(mktemp -d)
namespace=pcapext-xdp-$$
trap 'ip netns delete $namespace 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

"$python" -m pcapext compile -t c -r "$capture" "$expression" >"$work/filter.c"
cp "$here/count.c" "$work"
clang -O2 -g -target bpf -c "$work/count.c" -o "$work/count.o"

ip netns add "$namespace"
inside() { ip netns exec "$namespace" "$@"; }
# Nothing but the capture's packets is to be on the wire.
inside sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6' 2>/dev/null || true
inside ip link add left type veth peer name right
inside ip link set dev right xdp obj "$work/count.o" sec xdp
inside ip link set left up
inside ip link set right up

inside "$python" - "$capture" <<'SEND'
import socket
import sys

import pcapext

with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock, pcapext.open_offline(sys.argv[1]) as capture:
    sock.bind(("left", 0))
    for packet in capture:
        sock.send(packet.data)
SEND

# The last frame has come in when the interface has counted as many as were sent.
sent=$(inside cat /sys/class/net/left/statistics/tx_packets)
tries=0
while [ "$(inside cat /sys/class/net/right/statistics/rx_packets)" -lt "$sent" ] && [ $tries -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done

program=$(inside ip -json link show right | "$python" -c 'import json, sys; print(json.load(sys.stdin)[0]["xdp"]["prog"]["id"])')
"$python" - "$program" <<'SHOW'
import json
import subprocess
import sys


def show(*words):
    return json.loads(subprocess.run(["bpftool", "-j", *words], check=True, capture_output=True).stdout)


(data,) = show("map", "dump", "id", str(show("prog", "show", "id", sys.argv[1])["map_ids"][0]))
(section,) = data["formatted"]["value"].values()
counts = {name: number for variable in section for name, number in variable.items()}
print(f"{counts['packets']} packets, {counts['matching']} match")
SHOW
