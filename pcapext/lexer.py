"""The scanner: text to tokens, as libpcap's scanner.l cuts it, with the words that pcapext adds.

In:  the text of a filter.
Out: a PLY lexer whose tokens carry a `Lexeme` (what was read, and where).

libpcap's scanner is made by flex: at every place the longest match wins, and of equals the rule that stands first.
PLY takes the first rule that matches, so everything that starts with a letter, a digit or a colon goes through one
rule, `t_WORD`, which does what flex does: `10.0.0.1` is an address, `10.0.0.1x` a name, `len-5` a name too,
`001122334455` a MAC address, `6:2` three tokens and `::1` one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ply import lex
from ply.lex import TOKEN

from pcapext.errors import FilterError, Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.slotted import dataclass


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A token's text and place; `number` is the value of a NUM."""

    text: str
    span: Span
    number: int = 0


# The words that pcapext reserves, by token.
_EXTENSION_TOKENS = {
    "inner": "INNER",
    "outer": "OUTER",
    "encap": "ENCAP",
    "payload": "PAYLOAD",
    "nproto": "PROTOCOL_KEY",
    "tproto": "PROTOCOL_KEY",
}

# libpcap's words, by token: those of one token differ in nothing but the text (scanner.l).
_STANDARD_WORDS = {
    "SRC": "src",
    "DST": "dst",
    "LINK": "link ether ppp slip fddi tr wlan",
    "NETWORK": "ip ip6 arp rarp",
    "TRANSPORT": "sctp tcp udp icmp icmp6 igmp igrp pim vrrp carp ah esp",
    "PROTOCOL": "atalk aarp decnet lat sca moprc mopdl iso esis es-is isis is-is l1 l2 iih lsp snp csnp psnp clnp stp ipx netbeui radio",
    "HOST": "host",
    "NET": "net",
    "NETMASK": "mask",
    "PORT": "port portrange",
    "PROTO": "proto protochain",
    "GATEWAY": "gateway",
    "TYPE": "type",
    "SUBTYPE": "subtype",
    "DIRECTION": "direction dir",
    "ADDRESS": "address1 addr1 address2 addr2 address3 addr3 address4 addr4 ra ta",
    "LESS": "less greater",
    "BYTE": "byte",
    "CAST": "broadcast multicast",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "LEN": "len length",
    "BOUND": "inbound outbound",
    "IFINDEX": "ifindex",
    "VLAN": "vlan",
    "MPLS": "mpls",
    "PPPOED": "pppoed",
    "PPPOES": "pppoes",
    "GENEVE": "geneve",
    "VXLAN": "vxlan",
    "LLC": "llc",
    "ATM": "lane metac bcc oam oamf4 oamf4ec oamf4sc sc ilmic connectmsg metaconnect",
    "ATM_FIELD": "vpi vci",
    "PF_NAME": "on ifname rset ruleset",
    "PF_NUMBER": "srnr subrulenum",
    "PF_RULE": "rnr rulenum",
    "PF_REASON": "reason",
    "PF_ACTION": "action",
    "MTP2": "fisu lssu lsu msu hfisu hlssu hmsu",
    "MTP3_FIELD": "sio opc dpc sls hsio hopc hdpc hsls",
}

KEYWORDS = {word: token for token, words in _STANDARD_WORDS.items() for word in words.split()} | {
    word: _EXTENSION_TOKENS.get(word, "KEY") for word in EXTENSION_WORDS
}

#: Names of numbers (scanner.l): offsets of fields, ICMP and ICMPv6 types, TCP flags.
NUMBER_NAMES = {
    "icmptype": 0,
    "icmpcode": 1,
    "icmp-echoreply": 0,
    "icmp-unreach": 3,
    "icmp-sourcequench": 4,
    "icmp-redirect": 5,
    "icmp-echo": 8,
    "icmp-routeradvert": 9,
    "icmp-routersolicit": 10,
    "icmp-timxceed": 11,
    "icmp-paramprob": 12,
    "icmp-tstamp": 13,
    "icmp-tstampreply": 14,
    "icmp-ireq": 15,
    "icmp-ireqreply": 16,
    "icmp-maskreq": 17,
    "icmp-maskreply": 18,
    "icmp6type": 0,
    "icmp6code": 1,
    "icmp6-destinationunreach": 1,
    "icmp6-packettoobig": 2,
    "icmp6-timeexceeded": 3,
    "icmp6-parameterproblem": 4,
    "icmp6-echo": 128,
    "icmp6-echoreply": 129,
    "icmp6-multicastlistenerquery": 130,
    "icmp6-multicastlistenerreportv1": 131,
    "icmp6-multicastlistenerdone": 132,
    "icmp6-routersolicit": 133,
    "icmp6-routeradvert": 134,
    "icmp6-neighborsolicit": 135,
    "icmp6-neighboradvert": 136,
    "icmp6-redirect": 137,
    "icmp6-routerrenum": 138,
    "icmp6-nodeinformationquery": 139,
    "icmp6-nodeinformationresponse": 140,
    "icmp6-ineighbordiscoverysolicit": 141,
    "icmp6-ineighbordiscoveryadvert": 142,
    "icmp6-multicastlistenerreportv2": 143,
    "icmp6-homeagentdiscoveryrequest": 144,
    "icmp6-homeagentdiscoveryreply": 145,
    "icmp6-mobileprefixsolicit": 146,
    "icmp6-mobileprefixadvert": 147,
    "icmp6-certpathsolicit": 148,
    "icmp6-certpathadvert": 149,
    "icmp6-multicastrouteradvert": 151,
    "icmp6-multicastroutersolicit": 152,
    "icmp6-multicastrouterterm": 153,
    "tcpflags": 13,
    "tcp-fin": 0x01,
    "tcp-syn": 0x02,
    "tcp-rst": 0x04,
    "tcp-push": 0x08,
    "tcp-ack": 0x10,
    "tcp-urg": 0x20,
    "tcp-ece": 0x40,
    "tcp-cwr": 0x80,
}

tokens = (
    *dict.fromkeys(KEYWORDS.values()),
    *("ID", "AID", "EID", "NUM", "HID", "HID6"),
    *("GEQ", "LEQ", "NEQ", "LSH", "RSH"),
)
literals = "+-*/%:[]<>()&|^="

_N = r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)"
_B = r"[0-9A-Fa-f]{1,2}"
_B2 = r"[0-9A-Fa-f]{4}"
_W = r"[0-9A-Fa-f]{1,4}"
_QUAD = rf"{_N}\.{_N}\.{_N}\.{_N}"


def _compressed_ipv6() -> str:
    """IPv6 addresses with `::`: `left` groups before it and, with those behind it, at most seven."""
    forms = []
    for left in range(8):
        before = ":".join([_W] * left)
        if left <= 5:
            forms.append(rf"{before}::(?:{_W}:){{0,{5 - left}}}{_QUAD}")
        forms.append(rf"{before}::(?:{_W}(?::{_W}){{0,{6 - left}}})?" if left < 7 else rf"{before}::")
    return "|".join(forms)


# What may start with a letter, a digit or a colon, in the order of scanner.l: of matches of one length the first wins.
# An address with dots at its end is tried before the same address without. The third column is what each match holds: where
# an expression lacks it, the pattern is not compiled, which takes 2 ms for that of IPv6 addresses.
_PATTERNS = (
    ("EID", rf"{_B}(?::{_B}){{5}}|{_B}(?:-{_B}){{5}}|{_B}(?:\.{_B}){{5}}|{_B2}\.{_B2}\.{_B2}|(?:{_B2}){{3}}", ""),
    ("NUM", _N, ""),
    ("HID", rf"{_N}(?:\.{_N}){{1,3}}", "."),
    ("HID6", rf"(?:{_W}:){{6}}{_QUAD}|{_W}(?::{_W}){{7}}|{_compressed_ipv6()}", ":"),
    ("bogus", rf"{_B}:+(?:{_B}:+)+", ":"),
    ("ID", r"[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?", ""),
    (":", ":", ":"),
)
_compiled = cache(re.compile)


def _number(lexeme: Lexeme, expression: str) -> int:
    """The value of a NUM: octal with a leading 0, hexadecimal with 0x, below 2**32 (scanner.l, stou)."""
    text = lexeme.text.lower()
    base = 16 if text.startswith("0x") else 8 if text.startswith("0") else 10
    # Python refuses to read very long numbers (sys.int_info), and libpcap any above 32 bits.
    digits = text.removeprefix("0x").lstrip("0") or "0"
    if base == 8 and not set(digits) <= set("01234567"):
        raise FilterError(f"number {lexeme.text} contains non-octal digit", expression, lexeme.span)
    if len(digits) > 11 or int(digits, base) > 0xFFFF_FFFF:
        raise FilterError(f"number {lexeme.text[:40]} overflows 32 bits", expression, lexeme.span)
    return int(digits, base)


# PLY reads a rule's pattern from its docstring too, but Python's option -OO drops those.
@TOKEN(r"\\[^ !()\n\t]+")  # type: ignore[untyped-decorator]
def t_ESCAPED(t: lex.LexToken) -> lex.LexToken:
    t.type = "ID"
    t.value = Lexeme(t.value[1:], Span(t.lexpos, t.lexpos + len(t.value)))
    return t


@TOKEN(r"\$[0-9A-Fa-f]{1,2}")  # type: ignore[untyped-decorator]
def t_AID(t: lex.LexToken) -> lex.LexToken:
    t.value = Lexeme(t.value, Span(t.lexpos, t.lexpos + len(t.value)))
    return t


_OPERATORS = {"&&": "AND", "||": "OR", "!": "NOT", ">=": "GEQ", "<=": "LEQ", "!=": "NEQ", "==": "=", "<<": "LSH", ">>": "RSH"}


@TOKEN(r"&&|\|\||>=|<=|!=|==|<<|>>|[-+*/%\[\]!<>()&|^=]")  # type: ignore[untyped-decorator]
def t_OPERATOR(t: lex.LexToken) -> lex.LexToken:
    t.type = _OPERATORS.get(t.value, t.value)
    t.value = Lexeme(t.value, Span(t.lexpos, t.lexpos + len(t.value)))
    return t


@TOKEN(r"[A-Za-z0-9:]")  # type: ignore[untyped-decorator]
def t_WORD(t: lex.LexToken) -> lex.LexToken:
    lexer, start = t.lexer, t.lexpos
    token, end, word_end = "", start, start
    for name, pattern, needed in _PATTERNS:
        if needed in lexer.lexdata and (match := _compiled(pattern).match(lexer.lexdata, start)):
            if name == "ID":
                word_end = match.end()
            if match.end() > end:
                token, end = name, match.end()
    lexer.lexpos = end
    text = lexer.lexdata[start:end]
    lexeme = Lexeme(text, Span(start, end))
    if end == word_end and text in KEYWORDS:
        token = KEYWORDS[text]
    elif end == word_end and text in NUMBER_NAMES:
        token, lexeme = "NUM", Lexeme(text, lexeme.span, NUMBER_NAMES[text])
    elif token == "NUM":
        lexeme = Lexeme(text, lexeme.span, _number(lexeme, lexer.lexdata))
    elif token == "bogus":
        raise FilterError(f"bogus ethernet address {text[:40]}", lexer.lexdata, lexeme.span)
    t.type, t.value = token, lexeme
    return t


t_ignore = " \r\n\t"


def t_error(t: lex.LexToken) -> lex.LexToken:
    # A token that the grammar has no use for: the parser's error says what was expected in its place.
    t.lexer.skip(1)
    t.type, t.value = "CHARACTER", Lexeme(t.value[0], Span(t.lexpos, t.lexpos + 1))
    return t


def make_lexer() -> Any:
    """A lexer of this module. `optimize` keeps PLY from checking the rules at every start; it needs no table file."""
    return lex.lex(optimize=True, lextab=False)
