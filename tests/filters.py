"""Makes filters of libpcap's language, right and wrong ones, asks libpcap what it makes of them, and spells trees out.

In:  a `Random`; a filter; a syntax tree.
Out: texts; libpcap's programs and words; texts that leave nothing to precedence or inheritance.

The rules below are a third writing down of the language, after libpcap's and pcapext's. They only have to reach every
corner of it: what is right is for libpcap to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random
from typing import Any

from pcapext import pcap_bridge
from pcapext.bpf import Instruction
from pcapext.errors import FilterError
from pcapext.syntax import (
    Access,
    And,
    Arithmetic,
    Binary,
    Cast,
    Encap,
    Expression,
    Group,
    KeyValue,
    Length,
    Negate,
    Not,
    Number,
    Or,
    Payload,
    Primitive,
    Protocol,
    Qualified,
    Relation,
    Standard,
)

EN10MB, IEEE802_11, PFLOG, SUNATM, MTP2 = 1, 105, 117, 123, 140

SYNTAX_ERROR = "can't parse filter expression: syntax error"

# A rule is a list of alternatives, one a line; a word in capitals is another rule. What is here twice is wanted more often.
# Words with ~ between them stay together, so that no mutation makes a name out of them that only the DNS would know.
_RULES = {
    "FILTER": """
        TERM
        TERM CONNECTIVE FILTER
        FILTER CONNECTIVE TERM
        FITTING CONNECTIVE VALUE
        host ADDRESS CONNECTIVE ADDRESS
        tcp src port PORT CONNECTIVE NOT PORT
        src host ADDRESS CONNECTIVE ( ADDRESS CONNECTIVE ADDRESS )""",
    "CONNECTIVE": "and\nor\n&&\n||",
    "NOT": "not\n!",
    "TERM": """
        NOT TERM
        ( FILTER )
        FITTING
        FITTING
        FITTING
        FITTING
        FITTING
        HEAD VALUE
        host ( HOSTS )
        port ( PORTS )
        LAYER
        PROTOCOL
        CAST
        NUMBERS COMPARISON NUMBERS
        NUMBERS COMPARISON NUMBERS
        NUMBERS COMPARISON NUMBERS
        LINK_TERM
        LINK_TERM""",
    "CAST": """
        broadcast\nmulticast\nether broadcast\nlink multicast\nip broadcast\nip multicast\nip6 multicast
        HEAD_PROTOCOL multicast""",
    "FITTING": """
        host ADDRESS
        src or dst host ( ADDRESS or ADDRESS )
        net 10
        dst net 10.0.0.0/8
        src net 10.1.0.0 mask 255.255.0.0
        ip6 src and dst net fe80::/16
        ether src 2:0:0:0:0:1
        ether host ( 2:0:0:0:0:1 or not 2:0:0:0:0:2 )
        tcp dst port PORT
        udp portrange 80-90
        port ( PORT or not ( PORT and PORT ) )
        addr2 2:0:0:0:0:1
        net ( 10 or 10.1 or 10.1 mask 255.255 )
        ip proto 6
        proto~\\tcp
        ip6 protochain 6
        ether proto~\\ip""",
    "ADDRESS": "10.0.0.1\n10.0.0.2\n::1\nfe80::1",
    "HOSTS": "ADDRESS\n( HOSTS )\nHOSTS CONNECTIVE ADDRESS\nNOT HOSTS",
    "PORTS": "PORT\n( PORTS )\nPORTS CONNECTIVE PORT\nNOT PORTS",
    "PORT": "80\n443\n\\53\n(  0x50 )",
    "HEAD": """
        HEAD_PROTOCOL DIRECTION KIND
        HEAD_PROTOCOL DIRECTION
        HEAD_PROTOCOL KIND
        HEAD_PROTOCOL proto
        HEAD_PROTOCOL protochain
        HEAD_PROTOCOL gateway""",
    "HEAD_PROTOCOL": "\n\nPROTOCOL",
    "LAYER": "ip\nip6\narp\nrarp\ntcp\nudp\nsctp\nicmp\nicmp6\nigmp\nigrp\npim\nvrrp\ncarp\nether",
    "PROTOCOL": """
        LAYER\nLAYER\nLAYER\nah\nesp\nlink\nppp\nslip\nfddi\ntr\nwlan
        atalk\naarp\ndecnet\nlat\nsca\nmoprc\nmopdl\niso\nesis\nes-is\nisis\nis-is\nclnp\nstp\nipx\nnetbeui\nradio
        l1\nl2\niih\nlsp\nsnp\ncsnp\npsnp""",
    "DIRECTION": """
        src\ndst\nsrc or dst\ndst or src\nsrc and dst\ndst and src
        addr1\naddress1\naddr2\naddress2\naddr3\naddress3\naddr4\naddress4\nra\nta""",
    "KIND": "host\nnet\nport\nportrange",
    "VALUE": """
        NUMBER
        ADDRESS
        10.1
        10.1/16
        10.1 mask 255.255
        fe80::/16
        2:0:0:0:0:1
        $1f
        \\127.0.0.1
        localhost
        NOT VALUE
        ( VALUES )""",
    "VALUES": "VALUE\nVALUES CONNECTIVE VALUE",
    "NUMBER": "0\n5\n80\n0x10\n017\ntcp-syn\nicmp-echo\nicmp6-echo\n( NUMBER )",
    "NUMBERS": """
        NUMBER
        len
        length
        LAYER [ NUMBERS ]
        LAYER [ NUMBERS : SIZE ]
        PROTOCOL [ NUMBER : 2 ]
        NUMBERS OPERATOR NUMBERS
        NUMBERS OPERATOR NUMBERS
        NUMBERS OPERATOR NUMBER
        - NUMBERS
        ( NUMBERS )""",
    "SIZE": "1\n2\n4\n4\n4\n3",
    "OPERATOR": "+\n-\n*\n/\n%\n&\n|\n^\n<<\n>>",
    "COMPARISON": "=\n==\n!=\n<\n<=\n>\n>=",
    "BYTE_OPERATOR": "&\n|\n<\n>\n=",
    "ATM": "lane\nmetac\nbcc\noam\noamf4\noamf4ec\noamf4sc\nsc\nilmic\nconnectmsg\nmetaconnect",
    "ATM_FIELD": "vpi\nvci",
    "SS7": "fisu\nlssu\nlsu\nmsu\nhfisu\nhlssu\nhmsu",
    "SS7_FIELD": "sio\nopc\ndpc\nsls\nhsio\nhopc\nhdpc\nhsls",
    "FIELD": "5\nCOMPARISON 5\n( 5 )\n( 5 or 6 || 7 )",
}
_LINK_TERMS = {
    EN10MB: """
        less NUMBER
        greater 0x10
        byte 0 BYTE_OPERATOR 5
        inbound
        outbound
        ifindex 2
        vlan
        vlan NUMBER
        mpls
        mpls NUMBER
        pppoed
        pppoes
        pppoes NUMBER
        geneve
        geneve NUMBER
        llc
        llc~i
        llc~ui
        llc rnr""",
    PFLOG: """
        on localhost
        ifname localhost
        rset localhost
        ruleset localhost
        rnr 5
        rulenum 5
        srnr 5
        subrulenum 5
        reason 0
        reason~match
        action~pass""",
    IEEE802_11: """
        HEAD_PROTOCOL type~mgt
        HEAD_PROTOCOL type 0x04
        HEAD_PROTOCOL type~mgt subtype~beacon
        HEAD_PROTOCOL type~data subtype 0
        HEAD_PROTOCOL subtype~beacon
        HEAD_PROTOCOL dir~tods
        HEAD_PROTOCOL direction 1""",
    SUNATM: """
        ATM
        ATM_FIELD FIELD""",
    MTP2: """
        SS7
        SS7_FIELD FIELD""",
}
LINK_TYPES = tuple(_LINK_TERMS)
_LINK_RULES = {linktype: f"LINK_TERM {linktype}" for linktype in _LINK_TERMS}
RULES = {
    name: [line.split() for line in text.strip("\n ").split("\n")]
    for name, text in (_RULES | {_LINK_RULES[linktype]: text for linktype, text in _LINK_TERMS.items()}).items()
}

#: Every word and sign of the language.
VOCABULARY = sorted({word.replace("~", " ") for lines in RULES.values() for line in lines for word in line if not word.isupper()})

_DEEPEST = 7


def words(random: Random, linktype: int, rule: str = "FILTER", depth: int = 0) -> list[str]:
    """The words and signs of a filter that keeps to the rules, with terms that this link type has a meaning for."""
    lines = RULES[rule]
    if depth >= _DEEPEST:
        lines = [line for line in lines if not {rule, "FILTER", "TERM", "VALUES", "HOSTS", "PORTS", "NUMBERS"} & {*line}] or lines[:1]
    found = []
    for word in random.choice(lines):
        word = _LINK_RULES[linktype] if word == "LINK_TERM" else word
        found += words(random, linktype, word, depth + 1) if word in RULES else [word.replace("~", " ")]
    return found


def mutated(random: Random, text: list[str]) -> list[str]:
    """The words with one or two left out, put in, changed or swapped."""
    text = list(text)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(text) + 1)
        match random.randrange(4):
            case 0:
                del text[at : at + 1]
            case 1:
                text.insert(at, random.choice(VOCABULARY))
            case 2:
                text[at : at + 1] = [random.choice(VOCABULARY)]
            case _:
                text[at : at + 2] = text[at : at + 2][::-1]
    return text


def compiled(expression: str, linktype: int = EN10MB) -> tuple[Instruction, ...] | str:
    """libpcap's program, not optimized; or, a `str`, its words about what is wrong."""
    try:
        return pcap_bridge.compile_expression(expression, linktype, netmask=0xFFFF_FF00, optimize=False)
    except FilterError as error:
        return error.message


# --- trees


def spelled(node: Expression, text: str) -> str:
    """The tree of a filter as a filter in which nothing is left to precedence or inheritance."""
    inherited = "?"

    def visit(node: Expression) -> str:
        nonlocal inherited
        match node:
            case And(left, right):
                return f"({visit(left)} and {visit(right)})"
            case Or(left, right):
                return f"({visit(left)} or {visit(right)})"
            case Not(operand):
                return f"(not {visit(operand)})"
            case Group(operand, scope):
                before = inherited
                inside = visit(operand)
                inherited = before
                return f"({scope} ({inside}))" if scope else inside
            case Qualified(qualifiers, operand):
                inherited = " ".join(filter(None, (qualifiers.scope, qualifiers.protocol, qualifiers.direction, qualifiers.kind)))
                return visit(operand)
            case Primitive(_, span):
                return f"({inherited} {text[span.start : span.end]})"
        inherited = "?"
        match node:
            case Protocol(scope, protocol):
                return " ".join(filter(None, (scope, protocol)))
            case Cast(scope, protocol, cast):
                return f"({' '.join(filter(None, (scope, protocol, cast)))})"
            case Relation(operator, left, right):
                return f"({spelled_number(left)} {operator} {spelled_number(right)})"
            case Encap(name, identifier):
                return f"(encap {name or ''} {'' if identifier is None else identifier})"
            case Standard(_, span):
                return f"({text[span.start : span.end]})"

    return visit(node)


def spelled_number(node: Arithmetic) -> str:
    match node:
        case Number(value):
            return str(value)
        case Length():
            return "len"
        case KeyValue(scope, key):
            return f"{scope or ''} {key}".strip()
        case Access(scope, protocol, index, size):
            return f"{scope or ''} {protocol}[{spelled_number(index)}:{size}]".strip()
        case Payload(scope, index, size):
            return f"{scope or ''} payload[{spelled_number(index)}:{size}]".strip()
        case Binary(operator, left, right):
            return f"({spelled_number(left)} {operator} {spelled_number(right)})"
        case Negate(operand):
            return f"(- {spelled_number(operand)})"


def nodes(tree: Expression) -> Iterator[Any]:
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending += [getattr(node, field.name) for field in dataclasses.fields(node) if dataclasses.is_dataclass(getattr(node, field.name))]


def placeless(node: Any) -> Any:
    """A tree as nested tuples, without places and parentheses, to compare."""
    if isinstance(node, Group) and node.scope is None:
        return placeless(node.operand)
    if not dataclasses.is_dataclass(node):
        return node
    return type(node).__name__, *(placeless(getattr(node, field.name)) for field in dataclasses.fields(node) if field.name != "span")
