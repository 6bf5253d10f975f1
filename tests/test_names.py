"""Names and literals: the constants in libpcap's own programs, and its own words where it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libpcaps import each_libpcap

from pcapext import bpf, names
from pcapext.errors import FilterError
from pcapext.pcap_bridge import compile_expression

__all__ = ["each_libpcap"]

pytestmark = pytest.mark.usefixtures("each_libpcap")


def compared_words(expression: str) -> tuple[int, int]:
    """What a program compares 32-bit words of the packet with, as (number, mask), the words one behind the other."""
    number = mask = 0
    word = None
    for instruction in compile_expression(expression, optimize=False):
        match instruction.code:
            case bpf.LD_W_ABS:
                word = 0xFFFFFFFF
            case bpf.AND_K if word is not None:
                word = instruction.k
            case bpf.JEQ_K if word is not None:
                number, mask, word = number << 32 | instruction.k, mask << 32 | word, None
            case _:
                word = None
    return number, mask


def dotted(number: int) -> str:
    return ".".join(map(str, number.to_bytes(4, "big")))


def libpcap_words(expression: str) -> str | None:
    """libpcap's error for an expression."""
    try:
        compile_expression(expression)
    except FilterError as error:
        return error.message
    return None


def error_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except FilterError as error:
        return error.message
    return None


# --- IPv4


@pytest.mark.parametrize(
    ("text", "value", "bits"),
    [
        ("10.0.0.1", 0x0A000001, 32),
        ("10.1", 0x0A01, 16),
        ("1.2.3", 0x010203, 24),
        ("255.255.255.255", 0xFFFFFFFF, 32),
        ("0.0.0.0", 0, 32),
        ("010.08.0000000001.1", 0x0A080101, 32),
    ],
)
def test_ipv4_literal(text: str, value: int, bits: int) -> None:
    assert names.ipv4_literal(text) == (value, bits)
    address, mask = compared_words(f"ip src host {text}")
    assert (address, mask) == (value << 32 - bits, 0xFFFFFFFF << 32 - bits & 0xFFFFFFFF)
    assert names.ipv4_network(text) == (address, mask)


def test_ipv4_literal_of_one_part() -> None:
    """No expression has one, but the mask of a network can be one: __pcap_atoin takes it."""
    assert names.ipv4_literal("10") == (10, 8)


@pytest.mark.parametrize("text", ["256.1", "1.2.3.256", "1.300.1", "1.1000", "0x10.1", "1.0xf", "99999999999999999999.1", f"{'9' * 200}.1"])
def test_invalid_ipv4(text: str) -> None:
    words = libpcap_words(f"ip src host {text}")
    assert words is not None
    assert words.startswith("invalid IPv4 address")
    assert error_of(lambda: names.ipv4_literal(text)) == words
    assert error_of(lambda: names.ipv4_network(text)) == words


@pytest.mark.parametrize("text", ["1.2.3.4.5", "1.-2", "1. 2", "1.\u0663", "a.b"])
def test_what_is_no_ipv4_literal(text: str) -> None:
    """What libpcap's scanner would not bring here."""
    with pytest.raises(FilterError, match="invalid IPv4 address"):
        names.ipv4_literal(text)


@pytest.mark.parametrize(
    ("text", "prefix", "mask"),
    [
        ("10.0.0.0", 8, None),
        ("10.1", 16, None),
        ("192.168.7", 24, None),
        ("10.0.0.1", 32, None),
        ("128.0", 1, None),
        ("0.0.0.0", 0, None),
        ("0.0", None, "0.0"),
        ("10.0.0.0", None, "255.0.0.0"),
        ("10.0.0.0", None, "255.0"),
        ("10.0.0.5", None, "255.0.0.255"),
    ],
)
def test_ipv4_network(text: str, prefix: int | None, mask: str | None) -> None:
    written = f"{text}/{prefix}" if mask is None else f"{text} mask {mask}"
    assert names.ipv4_network(text, prefix, mask) == compared_words(f"ip src net {written}")


@pytest.mark.parametrize(
    ("text", "prefix", "mask"),
    [
        ("10.0.0.1", 8, None),
        ("10.1", 8, None),
        ("10.0.0.0", 33, None),
        ("10.0.0.0", 0, None),
        ("10.0.0.0", 4294967295, None),
        ("300.0", 8, None),
        ("10.1", None, "255.0.0.0"),
        ("10.0", None, "256.0"),
        ("10.0.0.1", None, "255.0"),
    ],
)
def test_ipv4_network_refused(text: str, prefix: int | None, mask: str | None) -> None:
    words = libpcap_words(f"net {text}/{prefix}" if mask is None else f"net {text} mask {mask}")
    assert words is not None
    assert error_of(lambda: names.ipv4_network(text, prefix, mask)) == words


@given(st.lists(st.integers(0, 299), min_size=2, max_size=4), st.integers(0, 34))
def test_any_ipv4_network(parts: list[int], prefix: int) -> None:
    text = ".".join(map(str, parts))
    words = libpcap_words(f"ip src net {text}/{prefix}")
    assert error_of(lambda: names.ipv4_network(text, prefix)) == words
    if words is None:
        assert names.ipv4_network(text, prefix) == compared_words(f"ip src net {text}/{prefix}")


@pytest.mark.parametrize("number", [1, 10, 127, 0x0A01, 0xC0A807, 0x0A000001, 0xFFFFFFFF, 256, 0x0A00])
def test_number_network(number: int) -> None:
    assert names.number_network(number) == compared_words(f"ip src net {number}")


# --- IPv6


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("::1", 128),
        ("2001:db8::", 32),
        ("fe80::", 10),
        ("1:2:3:4:5:6:7::", 112),
        ("::ffff:1.2.3.4", 128),
        ("2001:DB8::8000:0:0:0", 65),
        ("8000::", 1),
    ],
)
def test_ipv6_network(text: str, prefix: int) -> None:
    assert names.ipv6_network(text, prefix) == compared_words(f"ip6 src net {text}/{prefix}")


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("2001:db8::1", 32),
        ("::1", 129),
        ("::", 4294967295),
        ("::300.1.1.1", 128),
        ("::0x1.1.1.1", 128),
        ("fe80::1", 10),
        ("::1.2.3.04", 128),
    ],
)
def test_ipv6_refused(text: str, prefix: int) -> None:
    words = libpcap_words(f"ip6 src net {text}/{prefix}")
    assert words is not None
    assert error_of(lambda: names.ipv6_network(text, prefix)) == words


@given(st.ip_addresses(v=6), st.integers(0, 130), st.booleans())
def test_any_ipv6_network(address: object, prefix: int, exact: bool) -> None:
    number = int(address)  # type: ignore[call-overload]
    if exact:
        number &= ~((1 << 128 - min(prefix, 128)) - 1)
    text = ":".join(f"{number >> shift & 0xFFFF:x}" for shift in range(112, -1, -16))
    assert error_of(lambda: names.ipv6_network(text, prefix)) == libpcap_words(f"ip6 src net {text}/{prefix}")


# --- Ethernet


@pytest.mark.parametrize(
    "text",
    [
        "aa:bb:cc:dd:ee:ff",
        "A:b:0:D:1:f",
        "aa-bb-cc-dd-ee-ff",
        "0-1-2-3-4-5",
        "aa.bb.cc.dd.ee.f",
        "aabb.ccdd.eeff",
        "0123.4567.89Ab",
        "aabbccddeeff",
    ],
)
def test_ethernet_address(text: str) -> None:
    octets = names.ethernet_address(text)
    # libpcap looks at the last four bytes first, then at the two before them.
    compared = [i.k for i in compile_expression(f"ether src {text}", optimize=False) if i.code == bpf.JEQ_K]
    assert octets == compared[1].to_bytes(2, "big") + compared[0].to_bytes(4, "big")


@pytest.mark.parametrize("text", ["1:2:3", "1:2:3:4:5:6:7"])
def test_bogus_ethernet_address(text: str) -> None:
    words = error_of(lambda: names.ethernet_address(text))
    assert words == f"bogus ethernet address {text}"


@pytest.mark.parametrize("text", ["", "aa:bb-cc:dd:ee:ff", "aabb.ccdd.eef", "aabbccddeef", "1:2:3:4:5:\u0663", "1:2:3:4:5:6\n"])
def test_what_is_no_ethernet_literal(text: str) -> None:
    with pytest.raises(FilterError, match="bogus ethernet address"):
        names.ethernet_address(text)


# --- ports


@pytest.mark.parametrize("protocol", [None, "tcp", "udp", "sctp"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("port", "http"),
        ("port", "ssh"),
        ("port", "tftp"),
        ("port", "domain"),
        ("port", "\\80"),
        ("port", "\\70000"),
        ("port", "no-such-port"),
        ("port", "Http"),
        ("portrange", "80-90"),
        ("portrange", "90-80"),
        ("portrange", "80-80"),
        ("portrange", "ssh-http"),
        ("portrange", "http-ssh"),
        ("portrange", "tftp-http"),
        ("portrange", "domain-http"),
        ("portrange", "22-http"),
        ("portrange", "70000-1"),
        ("portrange", "1-70000"),
        ("portrange", "http"),
        ("portrange", "no-such"),
        ("portrange", "\\-1-5"),
        ("portrange", "1-99999999999"),
        ("portrange", "80-90x"),
        ("portrange", "1-2-3"),
        ("portrange", "010-020"),
        ("portrange", "0x10-0x20"),
        ("portrange", "no-such-range"),
    ],
)
def test_named_ports(kind: str, name: str, protocol: str | None) -> None:
    qualifier = f"{protocol} " if protocol else ""
    words = libpcap_words(f"{qualifier}{kind} {name}")
    plain = name.removeprefix("\\")
    assert error_of(lambda: names.named_ports(plain, kind, protocol)) == words
    if words is None:
        low, high, known = names.named_ports(plain, kind, protocol)
        found = f"{known} " if known else ""
        same = f"{found}{kind} {low}" if kind == "port" else f"{found}{kind} {low}-{high}"
        assert low <= high
        assert compile_expression(f"{qualifier}{kind} {name}") == compile_expression(same)


@pytest.mark.parametrize("name", ["", "80 or port 90", "80\n", "(80)", "!80"])
def test_what_is_no_name_of_a_port(name: str) -> None:
    """What libpcap's scanner would not bring here."""
    with pytest.raises(FilterError, match="unknown port"):
        names.named_ports(name)


def test_number_port() -> None:
    assert names.number_port(80) == (80, 80)
    for number in (65536, 4294967295):
        assert error_of(lambda: names.number_port(number)) == libpcap_words(f"port {number}")  # noqa: B023


# --- protocols


@pytest.mark.parametrize("name", ["tcp", "udp", "icmp", "ipv6-icmp", "gre", "GRE", "esp", "ah", "ip", "sctp", "no-such-protocol", "47"])
def test_ip_protocol(name: str) -> None:
    words = libpcap_words(f"ip proto \\{name}")
    assert error_of(lambda: names.ip_protocol(name)) == words
    if words is None:
        assert compile_expression(f"ip proto \\{name}") == compile_expression(f"ip proto {names.ip_protocol(name)}")


@pytest.mark.parametrize(
    "name",
    ["aarp", "arp", "atalk", "decnet", "ip", "ip6", "lat", "loopback", "mopdl", "moprc", "rarp", "sca", "IP", "no-such", "isis", "tcp"],
)
def test_ethertype(name: str) -> None:
    words = libpcap_words(f"ether proto \\{name}")
    assert error_of(lambda: names.ethertype(name)) == words
    if words is None:
        # Names of AppleTalk get code for two encapsulations.
        assert names.ethertype(name) in [i.k for i in compile_expression(f"ether proto \\{name}", optimize=False) if i.code == bpf.JEQ_K]


@pytest.mark.parametrize("name", ["iso", "stp", "ipx", "netbeui"])
def test_llc_protocols_have_no_ethertype(name: str) -> None:
    with pytest.raises(FilterError, match=f"'{name}' is an LLC protocol and has no EtherType"):
        names.ethertype(name)


# --- names that the system knows


def test_scoped_address() -> None:
    """A name that is an address with its interface: libpcap takes the address."""
    (address,) = names.host_addresses("fe80::1%lo")
    assert compile_expression("host \\fe80::1%lo") == compile_expression(f"host {address}")


def test_localhost() -> None:
    addresses = names.host_addresses("localhost")
    terms = [f"{'ip' if address.version == 4 else 'ip6'} host {address}" for address in addresses]
    assert compile_expression("ip host localhost or ip6 host localhost" if len(terms) > 1 else "ip host localhost") == compile_expression(
        " or ".join(terms)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (names.host_addresses, "unknown host '{}'"),
        (names.net_name, "unknown network '{}'"),
        (names.ethernet_host, "unknown ether host '{}'"),
        (names.named_ports, "out of memory: a word, or the whole, is too long for libpcap"),
        (names.ip_protocol, "unknown ip proto '{}'"),
        (names.ethertype, "unknown ether proto '{}'"),
    ],
)
def test_long_and_odd_names(call: Callable[[str], object], words: str) -> None:
    """As long as a message of libpcap's, at most; and no character is lost on the way to C."""
    for name in ("a" * 100_000, "é" * 50_000):
        assert error_of(lambda: call(name)) == words.format(name).encode()[:255].decode(errors="ignore")  # noqa: B023
    for name in ("localhost\0x", "http\ud800"):
        with pytest.raises(FilterError, match="character"):
            call(name)


#: Files for /etc that have more to offer than those of most machines.
ETC = {
    "host.conf": "multi on\n",
    "nsswitch.conf": "hosts: files\nnetworks: files\nprotocols: files\nservices: files\nethers: files\n",
    "hosts": "10.0.0.1 one both many\n10.0.0.2 many\n10.0.0.3 many\n2001:db8::1 six both\n2001:db8::2 both\n",
    "networks": "short 10\nlonger 172.16\nfull 192.168.1.0\nten 10.0.0.0\nloop 127.0.0.0\n",
    "protocols": "ip 0 IP\ntcp 6 TCP\nudp 17 UDP\nsctp 132\nodd 200 alias\nzero 0\n",
    "services": "onlytcp 1000/tcp\nonlyudp 1001/udp\nboth 1002/tcp\nboth 1002/udp\ndiffer 1003/tcp\ndiffer 1004/udp\n"
    "onlysctp 1005/sctp\ntop 65535/tcp\n",
    "ethers": "00:11:22:33:44:55 box\n0:1:2:3:4:5 short\n",
}

#: What is asked there: the function and its arguments, and the standard expression with the name in it.
ASKED = [
    *(("host_addresses", [name], f"host {name}") for name in ("one", "six", "both", "many", "nothing")),
    *(("net_name", [name], f"ip src net {name}") for name in ("short", "longer", "full", "ten", "loop", "nothing")),
    *(("ip_protocol", [name], f"ip proto {name}") for name in ("odd", "alias", "zero", "nothing")),
    *(("ethernet_host", [name], f"ether src host {name}") for name in ("box", "short", "nothing")),
    *(
        ("named_ports", [name, "port", protocol], f"{protocol or ''} port {name}")
        for name in ("onlytcp", "onlyudp", "both", "differ", "onlysctp", "top", "nothing")
        for protocol in (None, "tcp", "udp", "sctp")
    ),
    *(
        ("named_ports", [name, "portrange", protocol], f"{protocol or ''} portrange {name}")
        for name in ("onlytcp-both", "onlyudp-both", "onlyudp-onlytcp", "top-onlytcp", "both-top", "differ-top", "both-nothing")
        for protocol in (None, "tcp", "udp", "sctp")
    ),
]

SCRIPT = """
import json, sys
from pcapext import names
from pcapext.errors import FilterError
from pcapext.pcap_bridge import compile_expression

def tried(call, *arguments):
    try:
        return call(*arguments)
    except FilterError as error:
        return error.message

def plain(value):
    match value:
        case str() | int() | None:
            return value
        case bytes():
            return list(value)
        case tuple():
            return [plain(part) for part in value]
        case _ if hasattr(value, "code"):
            return value.code, value.k
    return str(value)

json.dump([
    (plain(tried(getattr(names, function), *arguments)), plain(tried(compile_expression, text)))
    for function, arguments, text in json.load(sys.stdin)
], sys.stdout)
"""


@pytest.mark.root
@pytest.mark.tools("unshare", "mount")
def test_names_of_a_system_with_many(tmp_path: Path, each_libpcap: str) -> None:
    """In a mount namespace with an /etc of its own, libpcap and the functions are asked for the same names."""
    for file, text in ETC.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "ld.so.cache").write_bytes(Path("/etc/ld.so.cache").read_bytes())
    command = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /etc && exec "$2" -c "$3"', "sh", str(tmp_path), sys.executable, SCRIPT]
    run = subprocess.run(command, input=json.dumps(ASKED), capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr
    answers = dict(zip(((function, *arguments) for function, arguments, _ in ASKED), json.loads(run.stdout), strict=True))
    for (function, *arguments), (found, program) in answers.items():
        if isinstance(program, str):
            assert found == program, (function, arguments)
        else:
            assert not isinstance(found, str), (function, arguments, found)
            expression = equivalent(function, arguments, found)
            assert [[i.code, i.k] for i in compile_expression(expression)] == program, (function, arguments, found)
    # libpcap's programs, and a few answers that are plain from the files.
    assert sorted(answers["host_addresses", "many"][0]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert answers["ethernet_host", "short"][0] == [0, 1, 2, 3, 4, 5]
    assert answers["net_name", "longer"][0] == [0xAC100000, 0xFFFFFFFF]  # glibc fills it up
    assert answers["named_ports", "differ", "port", None][0] == [1003, 1003, "tcp"]
    assert answers["named_ports", "onlyudp", "port", "tcp"][0] == "port 'onlyudp' is udp"


def equivalent(function: str, arguments: list[str], found: list[int]) -> str:
    """An expression without names that libpcap makes the same program of, if what was found is right."""
    match function, found:
        case "host_addresses", addresses:
            return " or ".join(f"host {address}" for address in addresses)
        case "net_name", [address, mask]:
            return f"ip src net {dotted(address)} mask {dotted(mask)}"
        case "ip_protocol", number:
            return f"ip proto {number}"
        case "ethernet_host", octets:
            return "ether src host " + ":".join(f"{octet:x}" for octet in octets)
        case "named_ports", [low, high, known]:
            return f"{known or ''} {arguments[1]} {low if arguments[1] == 'port' else f'{low}-{high}'}"
    raise AssertionError(function)
