"""Every error of a bad expression says what is wrong, what was expected and where; and places are shown right in any text."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcapext import errors, lexer, parser
from pcapext import resolve as resolving
from pcapext.errors import LONGEST_EXCERPT, WIDTH, FilterError, PcapextError, Span, columns, excerpt, printable, render
from pcapext.parser import parse
from pcapext.resolve import resolve
from pcapext.syntax import ARITHMETIC_DEPTH

# --- expressions

#: What users read: the message, the expression, and carets below the place.
MESSAGES = r"""
unexpected 'and', expected a term
  and
  ^^^

unexpected end, expected a term
  tcp and
         ^

unexpected 'and', expected a term
  tcp and and udp
          ^^^

unexpected end, expected a term
  (
   ^

unexpected ')', expected a term
  )
  ^

unexpected end, expected a qualifier such as 'host' or 'port', '[', ')', 'and' or 'or'
  (tcp
      ^

unexpected ')', expected 'and', 'or' or the end
  tcp )
      ^

unexpected end, expected a term
  not
     ^

unexpected end, expected a name, a number or an address
  tcp port
          ^

unexpected end, expected a name, a number or an address
  src host
          ^

unexpected end, expected a term
  tcp port 80 or
                ^

unexpected 'foo', expected a term such as 'host foo'
  foo
  ^^^

unexpected 'http', expected a term such as 'host http'
  http and inner tcp
  ^^^^

unexpected '10.0.0.1', expected a term such as 'host 10.0.0.1'
  10.0.0.1
  ^^^^^^^^

unexpected '10.0.0.0', expected a term such as 'net 10.0.0.0'
  10.0.0.0/8
  ^^^^^^^^

unexpected 'fe80::1', expected a term such as 'host fe80::1'
  fe80::1
  ^^^^^^^

unexpected '00:11:22:33:44:55', expected a term such as 'ether host 00:11:22:33:44:55'
  00:11:22:33:44:55
  ^^^^^^^^^^^^^^^^^

unexpected 'tcpp', expected a term; did you mean 'tcp'?
  tcpp port 80
  ^^^^

unexpected 'AND', expected 'and', 'or' or the end; did you mean 'and'?
  inner tcp port 80 AND udp
                    ^^^

unexpected 'INNER', expected a term; did you mean 'inner'?
  INNER tcp
  ^^^^^

unexpected end, expected a term
  inner
       ^

unexpected ')', expected a term
  inner )
        ^

unexpected 'and', expected a term
  inner and tcp
        ^^^

unexpected 'bar', expected 'and', 'or' or the end; 'foo' is taken as the name of a host
  inner foo bar
            ^^^

unexpected 'port', expected 'and', 'or' or the end; 'tpc' is taken as the name of a host
  inner tpc port 80
            ^^^^

unexpected '80', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp 80
            ^^

unexpected 'udp', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp udp
            ^^^

unexpected 'foo', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp foo
            ^^^

unexpected 'https', expected 'and', 'or' or the end
  inner port http https
                  ^^^^^

unexpected 'host', expected 'dst'
  inner src and host 10.0.0.1
                ^^^^

unexpected 'port', expected 'dst'
  src or port 80
         ^^^^

unexpected 'tcp', expected a name, a number or an address; 'not' belongs before 'inner' or 'outer'
  inner not tcp
            ^^^

'inner' has no meaning after 'inner'
  inner inner tcp
        ^^^^^

'outer' has no meaning after 'inner'
  inner outer tcp
        ^^^^^

unexpected 'depth', expected a name, a number or an address; the name is written '\depth'
  host depth
       ^^^^^

unexpected 'depth', expected a name, a number or an address; the name is written '\depth'
  inner host depth
             ^^^^^

unexpected 'inner', expected a name, a number or an address; the name is written '\inner'
  port inner
       ^^^^^

unexpected 'vxlan', expected a name, a number or an address; the name is written '\vxlan'
  host vxlan and inner tcp
       ^^^^^

unexpected 'poff-14', expected a term; write 'poff - 14' for a difference
  poff-14 > 3
  ^^^^^^^

unexpected 'len-poff', expected a term; write 'len - poff' for a difference
  len-poff > 3 and tcp
  ^^^^^^^^

unexpected '>', expected 'and', 'or' or the end; write 'poff - 14' for a difference
  inner poff-14 > 3
                ^

unexpected '>', expected 'and', 'or' or the end; write 'poff - 14' for a difference
  tcp and poff-14 > 3
                  ^

unexpected 'poff-2', expected a number, a flow key or bytes of a header; write 'poff - 2' for a difference
  ip[poff-2] = 3
     ^^^^^^

unexpected end, expected a comparison or an operator
  poff
      ^

unexpected '5', expected a comparison or an operator
  poff 5
       ^

unexpected end, expected a number, a flow key or bytes of a header
  poff =
        ^

unexpected '>', expected a number, a flow key or bytes of a header
  poff > > 3
         ^

unexpected '>', expected an operator, 'and', 'or' or the end
  poff > 54 > 3
            ^

unexpected end, expected '['
  poff == tcp
             ^

unexpected '\tcp', expected a number, a flow key or bytes of a header
  poff = \tcp
         ^^^^

unexpected end, expected an operator, ':' or ']'
  tcp[0
       ^

unexpected end, expected a number
  tcp[0:
        ^

unexpected end, expected ']'
  tcp[0:2
         ^

unexpected ']', expected a number, a flow key or bytes of a header
  tcp[] = 3
      ^

unexpected end, expected '['
  payload
         ^

unexpected '=', expected '['
  payload = 3
          ^

unexpected end, expected a comparison or an operator
  payload[0]
            ^

unexpected end, expected a name, a number or an address
  tproto
        ^

unexpected 'tcp', expected a name, a number or an address; the name is written '\tcp'
  tproto (tcp or udp)
          ^^^

unexpected 'udp', expected 'and', 'or' or the end
  tproto tcp udp
             ^^^

unexpected 'foo', expected a number, 'and', 'or' or the end
  encap vlan foo
             ^^^

unexpected '20', expected 'and', 'or' or the end
  encap vlan 10 20
                ^^

unexpected 'tcp', expected a name, 'and', 'or' or the end
  encap tcp
        ^^^

unexpected end, expected ')'
  encap vxlan (42
                 ^

unexpected 'foo', expected a number, 'and', 'or' or the end
  vlan foo and inner tcp
       ^^^

unexpected ';', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp; udp
           ^

unexpected '"', expected a term
  inner "tcp"
        ^

unexpected ',', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp, udp
           ^

unexpected '|', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp | udp
            ^

unexpected '&', expected a qualifier such as 'host' or 'port', '[', 'and', 'or' or the end
  inner tcp & udp
            ^

unexpected '\', expected a name, a number or an address
  inner host \
             ^

unexpected 'and', expected a comparison or an operator
  tcp[13] & tcp-syn and inner ip
                    ^^^

number 4294967296 overflows 32 bits
  poff > 4294967296
         ^^^^^^^^^^

number 08 contains non-octal digit
  poff > 08
         ^^

unexpected '0xg', expected a number, a flow key or bytes of a header
  poff > 0xg
         ^^^

bogus ethernet address 0:2:
  ip[0:2:3] = poff
     ^^^^

bogus ethernet address 1:2:3:4:5:
  inner ether host 1:2:3:4:5:
                   ^^^^^^^^^^

'inbound' has no meaning after 'inner'
  inner inbound
        ^^^^^^^

'ifindex' has no meaning after 'inner'
  inner ifindex 3
        ^^^^^^^

'ifindex' has no meaning after 'inner'
  inner (ifindex 3)
         ^^^^^^^^^

'wlan' has no meaning after 'inner'
  inner wlan host 2:0:0:0:0:1
  ^^^^^^^^^^^^^^^

'wlan[...]' has no meaning after 'inner'
  inner (tcp or wlan[0] = 1)
                ^^^^^^^

'type' has no meaning after 'inner'
  inner type mgt
        ^^^^

'type' has no meaning after 'inner'
  inner (tcp or type mgt)
                ^^^^^^^^

'on' has no meaning after 'inner'
  inner on eth0
        ^^

'reason' has no meaning after 'inner'
  inner (reason match)
         ^^^^^^^^^^^^

'gateway' has no meaning after 'inner'
  inner gateway 10.0.0.1
  ^^^^^^^^^^^^^

'len' has no meaning after 'inner'
  inner len > 5
        ^^^

'len' has no meaning after 'inner'
  inner (tcp and len > 5)
                 ^^^

'vlan' has no meaning after 'inner'
  inner vlan
        ^^^^

'vlan' has no meaning after 'inner'
  inner (vlan 10 and tcp)
         ^^^^^^^

'mpls' has no meaning after 'inner'
  inner mpls 5
        ^^^^

'pppoes' has no meaning after 'inner'
  inner (pppoes)
         ^^^^^^

'encap' has no meaning after 'inner'
  inner encap
        ^^^^^

'encap' has no meaning after 'inner'
  inner (tcp and encap vxlan 5)
                 ^^^^^^^^^^^^^

'atalk' has no meaning after 'inner'
  inner atalk
  ^^^^^^^^^^^

'decnet' has no meaning after 'inner'
  inner decnet host 1.2
  ^^^^^^^^^^^^^^^^^

'less' has no meaning after 'inner'
  inner less 100
        ^^^^

'less' has no meaning after 'inner'
  inner (less 100)
         ^^^^^^^^

'protochain' has no meaning after 'inner'
  inner ip protochain 6
  ^^^^^^^^^^^^^^^^^^^

'llc' has no meaning after 'inner'
  inner llc
        ^^^

'outer' has no meaning inside 'inner ( ... )'
  inner (outer tcp)
         ^^^^^^^^^

'inner' has no meaning inside 'outer ( ... )'
  outer (tcp or inner (udp))
                ^^^^^^^^^^^

'outer' has no meaning inside 'inner ( ... )'
  inner (poff > 3 and outer nhoff > 3)
                      ^^^^^^^^^^^

'outer' has no meaning inside 'inner ( ... )'
  outer tcp port 80 and inner ((udp) or 443)
                                        ^^^

the index of 'inner tcp[...]' cannot read bytes that have no 'inner' before them
  inner tcp[ip[0]] = 3
            ^^^^^

the index of 'outer udp[...]' cannot read bytes that have no 'outer' before them
  outer udp[link[poff]] = 3
            ^^^^^^^^^^

'outer' has no meaning inside 'inner ( ... )'
  inner (tcp[outer ip[0]] = 3)
             ^^^^^^^^^^^

'443' stands alone, expected qualifiers before it such as 'host' or 'port'
  inner (tcp port 80) or 443
                         ^^^

'80' stands alone, expected qualifiers before it such as 'host' or 'port'
  inner tcp or 80
               ^^

'443' stands alone, expected qualifiers before it such as 'host' or 'port'
  inner tcp port 80 and arp or 443
                               ^^^

'443' stands alone, expected qualifiers before it such as 'host' or 'port'
  tcp port 80 or (poff > 3 or not 443)
                                  ^^^

'10.0.0.1' stands alone, expected qualifiers before it such as 'host' or 'port'
  inner tcp and (arp or 10.0.0.1)
                        ^^^^^^^^

expected a name or a number of a protocol after 'tproto'
  tproto 10.0.0.1
         ^^^^^^^^

300 is out of range for 'tproto', expected 0 to 255
  tproto 300
         ^^^

65536 is out of range for 'nproto', expected 0 to 65535
  nproto 65536
         ^^^^^

'tcp' is no network protocol, expected one or 'tproto tcp'
  nproto tcp
         ^^^

'ip' is no transport protocol, expected one or 'nproto ip'
  tproto ip
         ^^

'stp' is an LLC protocol and has no EtherType
  nproto \stp
         ^^^^

unknown ip proto 'nosuch'
  tproto nosuch
         ^^^^^^

unknown ip proto 'nosuch'
  inner proto nosuch
              ^^^^^^

unknown ether proto 'nosuch'
  inner ether proto nosuch
                    ^^^^^^

'ether proto 1535' has no meaning after 'inner'
  inner ether proto 0x5ff
  ^^^^^^^^^^^^^^^^^^^^^^^

'ether proto 5' has no meaning after 'inner'
  inner ether proto 5
  ^^^^^^^^^^^^^^^^^^^

unknown port 'nosuch'
  inner port nosuch
             ^^^^^^

unknown network 'nosuch'
  inner net nosuch
            ^^^^^^

non-network bits set in "10.0.0.1/8"
  inner net 10.0.0.1/8
            ^^^^^^^^^^

mask length must be <= 32
  inner net 10.0.0.0/33
            ^^^^^^^^^^^

non-network bits set in "10.0.0.1 mask 255.0.0.0"
  inner net 10.0.0.1 mask 255.0.0.0
            ^^^^^^^^^^^^^^^^^^^^^^^

Mask syntax for networks only
  inner host 10.0.0.0/8
             ^^^^^^^^^^

invalid IPv4 address '1.2.3.400'
  inner host 1.2.3.400
             ^^^^^^^^^

non-network bits set in "::1/64"
  inner host ::1/64
             ^^^^^^

non-network bits set in "::1/64"
  inner net ::1/64
            ^^^^^^

'ip' modifier applied to ip6 host
  inner ip host ::1
                ^^^

'ip6' modifier applied to ip host
  inner ip6 host 10.0.0.1
                 ^^^^^^^^

'tcp' modifier applied to host
  inner tcp host 10.0.0.1
  ^^^^^^^^^^^^^^

ethernet address used in non-ether expression
  inner host 00:11:22:33:44:55
             ^^^^^^^^^^^^^^^^^

illegal link layer address
  inner ether host 10.0.0.1
                   ^^^^^^^^

link-layer modifier applied to net
  inner ether net 10.0.0.0
                  ^^^^^^^^

illegal qualifier of 'port'
  inner ether port 80
  ^^^^^^^^^^^^^^^^

illegal port number 70000 > 65535
  inner port 70000
             ^^^^^

'port' modifier applied to ip host
  inner port 10.0.0.1
             ^^^^^^^^

invalid qualifier against IPv6 address
  inner port ::1
             ^^^

illegal qualifier of 'port'
  inner icmp port 80
  ^^^^^^^^^^^^^^^

aid supported only on ARCnet
  inner host $1f
             ^^^

'addr1' is not a valid qualifier for addresses other than 802.11 MAC addresses
  inner addr1 2:0:0:0:0:1
  ^^^^^^^^^^^

netmask not known, so 'ip broadcast' not supported
  inner ip broadcast
  ^^^^^^^^^^^^^^^^^^

only link-layer/IP multicast filters supported
  inner tcp multicast
  ^^^^^^^^^^^^^^^^^^^

only link-layer/IP broadcast filters supported
  inner ip6 broadcast
  ^^^^^^^^^^^^^^^^^^^

'atalk' has no meaning after 'inner'
  inner atalk broadcast
  ^^^^^^^^^^^^^^^^^^^^^

'tcp proto' is bogus
  inner tcp proto 6
  ^^^^^^^^^^^^^^^

'ah[...]' has no meaning after 'inner'
  inner ah[0] = 1
  ^^^^^^^^^^^

data size must be 1, 2, or 4
  inner tcp[0:3] = 1
  ^^^^^^^^^^^^^^

data size must be 1, 2, or 4
  poff = tcp[0:3]
         ^^^^^^^^

data size must be 1, 2, or 4
  payload[0:9] = 1
  ^^^^^^^^^^^^

division by zero
  poff / 0 > 3
  ^^^^^^^^

modulus by zero
  poff % (0) > 3
  ^^^^^^^^^^

shift by more than 31 bits
  poff << 32 > 3
  ^^^^^^^^^^

unknown encapsulation 'foo', expected one of vlan, qinq, mpls, pppoe, nsh, ipip, 6in4, 4in6, 6in6, gre, etherip, nvgre, erspan, vxlan, vxlan-gpe, geneve, gtpu, teredo
  encap foo
  ^^^^^^^^^

unknown encapsulation 'tcp', expected one of vlan, qinq, mpls, pppoe, nsh, ipip, 6in4, 4in6, 6in6, gre, etherip, nvgre, erspan, vxlan, vxlan-gpe, geneve, gtpu, teredo
  encap \tcp
  ^^^^^^^^^^

label 1048576 greater than maximum 1048575
  encap mpls 0x100000 or ip
  ^^^^^^^^^^^^^^^^^^^

'encap ipip' takes no number: its header has no identifier
  tcp and encap ipip 5
          ^^^^^^^^^^^^

unexpected 'gre', expected a number, a flow key or bytes of a header; write 'tproto gre' to compare with a name
  tproto = gre
           ^^^

unexpected end, expected '['; write 'tproto tcp' to compare with a name
  tproto != tcp
               ^

unexpected 'and', expected '['; write 'nproto ip6' to compare with a name
  inner nproto == ip6 and tcp
                      ^^^

unexpected '\tcp', expected a number, a flow key or bytes of a header; write 'tproto \tcp' to compare with a name
  tproto = \tcp
           ^^^^

unexpected end, expected a number, a flow key or bytes of a header
  tproto = (
            ^

unexpected 'ip6', expected a name, a number or an address; the name is written '\ip6'
  tproto ( ip6 )
           ^^^

unexpected end, expected a term
  outer
       ^

'ra' is not a valid qualifier for ports
  inner ra port 80
  ^^^^^^^^^^^^^

expected a name or a number of a protocol after 'proto'
  inner proto fe80::1
              ^^^^^^^

Mask syntax for networks only
  inner port 10.0.0.0/8
             ^^^^^^^^^^

'proto' modifier applied to ip host
  inner ip proto 10.0.0.1
                 ^^^^^^^^
"""  # noqa: E501


@pytest.mark.parametrize("shown", MESSAGES.strip("\n").split("\n\n"), ids=lambda shown: shown.split("\n")[1].strip())
def test_messages(shown: str) -> None:
    _, line, caret = shown.split("\n")
    expression = line.removeprefix("  ")
    with pytest.raises(FilterError) as caught:
        resolve(expression, parse(expression))
    assert str(caught.value) == shown
    assert len(caret) <= len(line) + 1


def templates() -> Iterator[str]:
    """A pattern for each text of an error in the source of the front end."""
    for module in (lexer, parser, resolving):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            match node:
                case ast.Call(ast.Name("FilterError") | ast.Attribute(attr="_error"), [ast.JoinedStr(values), *_]):
                    yield "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in values)
                case ast.Call(ast.Name("FilterError") | ast.Attribute(attr="_error"), [ast.Constant(str(text)), *_]):
                    yield re.escape(text)


#: They take a text too long for the table, or a host with more addresses than a test may ask the system for.
TESTED_ELSEWHERE = (f"arithmetic of more than {ARITHMETIC_DEPTH} levels", "unknown host 'one' for specified address family")


def test_table_has_every_message() -> None:
    messages = [*(shown.split("\n")[0] for shown in MESSAGES.strip("\n").split("\n\n")), *TESTED_ELSEWHERE]
    found = list(templates())
    assert len(found) > 30
    assert [template for template in found if not any(re.fullmatch(template, message) for message in messages)] == []


# --- showing a place


@pytest.mark.parametrize(
    ("expression", "span", "shown"),
    [
        ("tcp and", Span(4, 7), ("tcp and", "    ^^^")),
        ("tcp and", Span(7, 7), ("tcp and", "       ^")),
        ("tcp and", Span(4, 4), ("tcp and", "    ^")),
        ("tcp and", Span(4, 99), ("tcp and", "    ^^^")),
        ("tcp and", Span(99, 99), ("tcp and", "       ^")),
        ("", Span(0, 0), ("", "^")),
        # What would move the caret away from the place: white space, control characters, wide and combining ones.
        ("a\tb\nc", Span(4, 5), ("a b c", "    ^")),
        ("\x1b[31m x", Span(6, 7), ("?[31m x", "      ^")),
        ("a\r\0\x7f\ud800b", Span(5, 6), ("a ???b", "     ^")),
        ("\u200bx\u202ey", Span(3, 4), ("?x?y", "   ^")),
        ("日本 x", Span(3, 4), ("日本 x", "     ^")),
        ("x 日本", Span(2, 4), ("x 日本", "  ^^^^")),
        ("e\u0301e\u0301 x", Span(5, 6), ("e\u0301e\u0301 x", "   ^")),
        ("é x", Span(2, 3), ("é x", "  ^")),
        ("x\u0301", Span(1, 2), ("x\u0301", " ^")),
        # Long ones are cut around the place.
        ("x" * 76, Span(75, 76), ("x" * 76, " " * 75 + "^")),
        ("x" * 77, Span(0, 1), ("x" * 76 + "...", "^")),
        ("x" * 77, Span(76, 77), ("..." + "x" * 76, " " * 78 + "^")),
        ("x" * 77, Span(77, 77), ("..." + "x" * 76, " " * 79 + "^")),
        ("x" * 500 + "!" + "y" * 500, Span(500, 501), ("..." + "x" * 25 + "!" + "y" * 50 + "...", " " * 28 + "^")),
        ("x" * 500 + "!" * 500, Span(500, 1000), ("..." + "x" * 25 + "!" * 51 + "...", " " * 28 + "^" * 51)),
        ("日" * 100 + "!", Span(100, 101), ("..." + "日" * 75 + "!", " " * 153 + "^")),
    ],
)
def test_render(expression: str, span: Span, shown: tuple[str, str]) -> None:
    assert render(expression, span) == "".join(f"\n  {line}" for line in shown)[1:]


@given(st.text(max_size=300), st.data())
def test_render_shows_the_place(expression: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(expression)))
    end = data.draw(st.integers(start, len(expression)))
    line, caret = render(expression, Span(start, end)).split("\n")
    assert line.isprintable()
    assert len(line) <= 2 + 3 + WIDTH + 3
    assert re.fullmatch(" +\\^+", caret)
    assert columns(caret) <= columns(line) + 1
    if columns(place := printable(expression)[start:end]) == len(place) > 0 and columns(line) == len(line):
        below = line[caret.index("^") : caret.rindex("^") + 1]
        assert place.startswith(below)
        assert below == place or line.endswith("...")


def test_excerpt() -> None:
    assert excerpt("tcp") == "tcp"
    assert excerpt("x" * LONGEST_EXCERPT) == "x" * LONGEST_EXCERPT
    assert excerpt("x" * (LONGEST_EXCERPT + 1)) == "x" * (LONGEST_EXCERPT - 3) + "..."
    assert excerpt("a\0\x1b\n\ud800\u200b日") == r"a\x00\x1b\n\ud800\u200b日"


@given(st.text())
def test_messages_are_printable(text: str) -> None:
    error = FilterError(f"unknown host '{text}'", text, Span(0, len(text)))
    assert str(error).replace("\n", "", 2).isprintable()
    assert str(FilterError(text)).isprintable()
    assert error.message == f"unknown host '{text}'"


@pytest.mark.parametrize(
    ("path", "message"),
    [("/no/such", "it: No such file or directory"), ("/", "it: Is a directory"), ("a\0b", "it: embedded null")],
)
def test_naming(path: str, message: str) -> None:
    with pytest.raises(errors.CaptureError) as caught, errors.naming("it"):
        Path(path).read_bytes()
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value.__cause__, OSError | ValueError)


def test_errors_survive_pickling() -> None:
    """They come back from a process pool as they were."""
    for error in (FilterError("wrong", "tcp and", Span(4, 7)), FilterError("wrong"), errors.CaptureError("x.pcap: wrong")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert isinstance(again, PcapextError)


def test_spans() -> None:
    assert Span(3, 5).cover(Span(1, 4)) == Span(1, 5)
    assert Span(3, 5).cover(Span(9, 9)) == Span(3, 9)
    for start, end in ((-1, 3), (3, 2)):
        with pytest.raises(ValueError, match=f"a span cannot run from {start} to {end}"):
            Span(start, end)
