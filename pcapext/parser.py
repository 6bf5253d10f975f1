"""The grammar: tokens to the syntax tree.

In:  the text of a filter.
Out: its `Expression` (syntax.py), or a `FilterError` that says what was expected and where.

The docstrings of the functions are the grammar that PLY reads: libpcap's (grammar.y) and, marked "pcapext", what it
adds. Words that libpcap's grammar treats alike are one token here. Actions only build nodes: what a value inherits from
the term before it, what a name means and what may stand where is for `resolve.py`.

Two things of libpcap's grammar are easy to lose. `and` and `or` have one precedence. And `%` and `^` have none, so that
bison shifts: `len + 5 % 3` is `len + (5 % 3)` and `8 % 5 + 1` is `8 % (5 + 1)`. The lowest and the highest level below
give PLY the same reading.
"""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import Any

from ply import yacc

from pcapext.errors import FilterError, Span
from pcapext.lexer import Lexeme, make_lexer, tokens
from pcapext.slotted import replace
from pcapext.syntax import (
    ARITHMETIC_DEPTH,
    Access,
    And,
    Arcnet,
    Arithmetic,
    Binary,
    Cast,
    Encap,
    Expression,
    Group,
    Ipv4,
    Ipv6,
    KeyValue,
    Length,
    Mac,
    Name,
    Negate,
    Not,
    Number,
    Or,
    Payload,
    Primitive,
    Protocol,
    Qualified,
    Qualifiers,
    Relation,
    Scope,
    Standard,
)

__all__ = ["parse", "tokens"]

start = "filter"

precedence = (
    ("nonassoc", "NO_PRECEDENCE"),
    ("left", "OR", "AND"),
    ("nonassoc", "NOT"),
    ("left", "|"),
    ("left", "&"),
    ("left", "LSH", "RSH"),
    ("left", "+", "-"),
    ("left", "*", "/"),
    ("nonassoc", "UMINUS"),
    ("nonassoc", "%", "^"),
)

#: One word for each word with two spellings.
_ONE_WORD = {
    "link": "ether",
    "es-is": "esis",
    "is-is": "isis",
    **{f"address{n}": f"addr{n}" for n in "1234"},
}


def _over(p: Any, first: int = 1) -> Span:
    """The span of a production: from its symbol `first` to its last."""
    return p[first].span.cover(p[len(p) - 1].span)  # type: ignore[no-any-return]


# --- expressions


def p_filter(p: Any) -> None:
    """filter : expression"""
    p[0] = p[1]


def p_same(p: Any) -> None:
    """expression : term
    identifier : named
    term : plain_term
    listed : named
    listed_head : listed
    arithmetic : narrow
    number : NUM"""
    p[0] = p[1]


def p_and(p: Any) -> None:
    """expression : expression AND term
                  | expression AND identifier
    listed : listed_head AND identifier"""
    p[0] = And(p[1], p[3], _over(p))


def p_or(p: Any) -> None:
    """expression : expression OR term
                  | expression OR identifier
    listed : listed_head OR identifier"""
    p[0] = Or(p[1], p[3], _over(p))


def p_not(p: Any) -> None:
    """term : NOT term
    named : NOT identifier"""
    p[0] = Not(p[2], _over(p))


def p_group(p: Any) -> None:
    """plain_term : '(' expression ')'
    identifier : '(' listed ')'"""
    p[0] = Group(p[2], None, _over(p))


def p_scoped_group(p: Any) -> None:  # pcapext
    """plain_term : scope '(' expression ')'"""
    p[0] = Group(p[3], p[1].text, _over(p))


# --- values, with the qualifiers before them


def p_qualified(p: Any) -> None:
    """plain_term : head identifier"""
    qualifiers, span = p[1]
    p[0] = Qualified(qualifiers, p[2], span.cover(p[2].span))


def p_scoped_value(p: Any) -> None:  # pcapext
    """plain_term : scope named
                  | scope bare_number"""
    p[0] = Qualified(Qualifiers(p[1].text), p[2], _over(p))


def p_scoped_values(p: Any) -> None:  # pcapext
    """plain_term : scope '(' listed ')'"""
    p[0] = Qualified(Qualifiers(p[1].text), Group(p[3], None, _over(p, 2)), _over(p))


def p_protocol_key(p: Any) -> None:  # pcapext
    """plain_term : PROTOCOL_KEY identifier
    | scope PROTOCOL_KEY identifier"""
    scope = p[1].text if len(p) == 4 else None
    p[0] = Qualified(Qualifiers(scope, kind=p[len(p) - 2].text), p[len(p) - 1], _over(p))


def p_protocol_key_word(p: Any) -> None:  # pcapext
    """plain_term : PROTOCOL_KEY protocol_word
    | scope PROTOCOL_KEY protocol_word"""
    scope, word = p[1].text if len(p) == 4 else None, p[len(p) - 1]
    value = Primitive(Name(word.text), word.span)
    p[0] = Qualified(Qualifiers(scope, kind=p[len(p) - 2].text), value, _over(p))


def p_bare_number(p: Any) -> None:
    """identifier : bare_number
    listed_head : bare_number"""
    p[0] = p[1]


def p_number_value(p: Any) -> None:
    """bare_number : number"""
    p[0] = Primitive(Number(p[1].number, p[1].span), p[1].span)


def p_number_in_parentheses(p: Any) -> None:
    """number : '(' number ')'"""
    p[0] = Lexeme(p[2].text, _over(p), p[2].number)


def p_name(p: Any) -> None:
    """named : ID"""
    p[0] = Primitive(Name(p[1].text), p[1].span)


def p_ipv4(p: Any) -> None:
    """named : HID"""
    p[0] = Primitive(Ipv4(p[1].text), p[1].span)


def p_ipv4_prefix(p: Any) -> None:
    """named : HID '/' NUM"""
    p[0] = Primitive(Ipv4(p[1].text, prefix=p[3].number), _over(p))


def p_ipv4_mask(p: Any) -> None:
    """named : HID NETMASK HID"""
    p[0] = Primitive(Ipv4(p[1].text, mask=p[3].text), _over(p))


def p_ipv6(p: Any) -> None:
    """named : HID6"""
    p[0] = Primitive(Ipv6(p[1].text), p[1].span)


def p_ipv6_prefix(p: Any) -> None:
    """named : HID6 '/' NUM"""
    p[0] = Primitive(Ipv6(p[1].text, prefix=p[3].number), _over(p))


def p_mac(p: Any) -> None:
    """named : EID"""
    p[0] = Primitive(Mac(p[1].text), p[1].span)


def p_arcnet(p: Any) -> None:
    """named : AID"""
    p[0] = Primitive(Arcnet(p[1].text), p[1].span)


def p_head(p: Any) -> None:
    """head : about direction kind
    | about direction
    | about kind
    | about GATEWAY
    | about PROTO"""
    scope, protocol, span = p[1]
    direction = kind = None
    for word in p[2:]:
        span = word.span if span is None else span.cover(word.span)
        if isinstance(word, _Direction):
            direction = word.text
        else:
            kind = word.text
    p[0] = Qualifiers(scope, protocol, direction, kind), span


def p_about(p: Any) -> None:
    """about : protocol_word"""
    p[0] = None, _word(p[1]), p[1].span


def p_about_scoped(p: Any) -> None:  # pcapext
    """about : scope protocol_word"""
    p[0] = p[1].text, _word(p[2]), _over(p)


def p_about_scope(p: Any) -> None:  # pcapext
    """about : scope"""
    p[0] = p[1].text, None, p[1].span


def p_about_nothing(p: Any) -> None:
    """about :"""
    p[0] = None, None, None


class _Direction(Lexeme):
    """A direction, told apart from a kind."""

    __slots__ = ()


def p_direction(p: Any) -> None:
    """direction : SRC
    | DST
    | ADDRESS"""
    p[0] = _Direction(_word(p[1]), p[1].span)


def p_direction_or(p: Any) -> None:
    """direction : SRC OR DST
    | DST OR SRC"""
    p[0] = _Direction("src or dst", _over(p))


def p_direction_and(p: Any) -> None:
    """direction : SRC AND DST
    | DST AND SRC"""
    p[0] = _Direction("src and dst", _over(p))


def p_kind(p: Any) -> None:
    """kind : HOST
    | NET
    | PORT"""
    p[0] = p[1]


def p_word(p: Any) -> None:
    """protocol_word : LINK
                     | NETWORK
                     | TRANSPORT
                     | PROTOCOL
    scope : INNER
          | OUTER"""
    p[0] = p[1]


def _word(lexeme: Lexeme) -> str:
    return _ONE_WORD.get(lexeme.text, lexeme.text)


# --- terms without a value


def p_protocol(p: Any) -> None:
    """plain_term : protocol_word"""
    p[0] = Protocol(None, _word(p[1]), p[1].span)


def p_scoped_protocol(p: Any) -> None:  # pcapext
    """plain_term : scope protocol_word"""
    p[0] = Protocol(p[1].text, _word(p[2]), _over(p))


def p_cast(p: Any) -> None:
    """plain_term : about CAST"""
    scope, protocol, span = p[1]
    p[0] = Cast(scope, protocol, p[2].text, p[2].span if span is None else span.cover(p[2].span))


def p_encap(p: Any) -> None:  # pcapext
    """plain_term : ENCAP
    | ENCAP encap_name
    | ENCAP encap_name number"""
    p[0] = Encap(p[2].text if len(p) > 2 else None, p[3].number if len(p) > 3 else None, _over(p))


def p_encap_name(p: Any) -> None:  # pcapext
    """encap_name : ID
    | VLAN
    | MPLS
    | GENEVE
    | VXLAN"""
    p[0] = p[1]


def p_standard(p: Any) -> None:
    """plain_term : LESS NUM
    | BYTE NUM byte_operator NUM
    | BOUND
    | IFINDEX NUM
    | VLAN
    | VLAN number
    | MPLS
    | MPLS number
    | PPPOED
    | PPPOES
    | PPPOES number
    | GENEVE
    | GENEVE number
    | VXLAN
    | VXLAN number
    | PF_NAME ID
    | PF_NUMBER NUM
    | PF_RULE NUM
    | PF_REASON NUM
    | PF_REASON ID
    | PF_ACTION ID
    | LLC
    | LLC ID
    | LLC PF_RULE
    | ATM
    | ATM_FIELD field_value
    | MTP2
    | MTP3_FIELD field_value"""
    p[0] = Standard(p[1].text, _over(p))


def p_80211(p: Any) -> None:
    """plain_term : about TYPE name_or_number SUBTYPE name_or_number
    | about TYPE name_or_number
    | about SUBTYPE ID
    | about DIRECTION name_or_number"""
    scope, _, span = p[1]
    if scope is not None:
        raise FilterError(f"'{p[2].text}' has no meaning after '{scope}'", p.lexer.lexdata, p[2].span)
    p[0] = Standard(p[2].text, _over(p, 2) if span is None else span.cover(p[len(p) - 1].span))


def p_part(p: Any) -> None:
    """name_or_number : ID
                      | NUM
    byte_operator : '&'
                  | '|'
                  | '<'
                  | '>'
                  | '='
    field_value : NUM
    relation_operator : '>'
                      | GEQ
                      | '='
                      | LEQ
                      | '<'
                      | NEQ"""
    p[0] = p[1]


def p_part_pair(p: Any) -> None:
    """field_value : relation_operator NUM"""
    p[0] = Lexeme(p[1].text, _over(p))


def p_field_list(p: Any) -> None:
    """field_value : '(' field_list ')'
    field_list : field_list OR NUM"""
    p[0] = Lexeme("", _over(p))


def p_field_list_first(p: Any) -> None:
    """field_list : NUM"""
    p[0] = p[1]


# --- relations and arithmetic


def p_relation(p: Any) -> None:
    """plain_term : arithmetic relation_operator arithmetic"""
    for side in (p[1], p[3]):
        _check_depth(side, p.lexer.lexdata)
    p[0] = Relation("=" if p[2].text == "==" else p[2].text, p[1], p[3], _over(p))


def _check_depth(arithmetic: Arithmetic, expression: str) -> None:
    """Refuse arithmetic that is nested deeper than the passes behind can go."""
    left = [(arithmetic, 1)]
    while left:
        node, depth = left.pop()
        if depth > ARITHMETIC_DEPTH:
            raise FilterError(f"arithmetic of more than {ARITHMETIC_DEPTH} levels", expression, node.span)
        match node:
            case Binary():
                left += [(node.left, depth + 1), (node.right, depth + 1)]
            case Access() | Payload():
                left.append((node.index, depth + 1))
            case Negate():
                left.append((node.operand, depth + 1))


def p_arithmetic_number(p: Any) -> None:
    """arithmetic : number"""
    p[0] = Number(p[1].number, p[1].span)


def p_access(p: Any) -> None:
    """narrow : protocol_word '[' arithmetic ']'
    | protocol_word '[' arithmetic ':' NUM ']'"""
    p[0] = Access(None, _word(p[1]), p[3], p[5].number if len(p) > 5 else 1, _over(p))


def p_scoped_access(p: Any) -> None:  # pcapext
    """narrow : scope protocol_word '[' arithmetic ']'
    | scope protocol_word '[' arithmetic ':' NUM ']'"""
    p[0] = Access(p[1].text, _word(p[2]), p[4], p[6].number if len(p) > 6 else 1, _over(p))


def p_payload(p: Any) -> None:  # pcapext
    """narrow : payload '[' arithmetic ']'
    | payload '[' arithmetic ':' NUM ']'"""
    scope, span = p[1]
    p[0] = Payload(scope, p[3], p[5].number if len(p) > 5 else 1, span.cover(p[len(p) - 1].span))


def p_payload_word(p: Any) -> None:  # pcapext
    """payload : PAYLOAD
    | scope PAYLOAD"""
    scope: Scope | None = p[1].text if len(p) == 3 else None
    p[0] = scope, _over(p)


def p_key(p: Any) -> None:  # pcapext
    """narrow : KEY
    | PROTOCOL_KEY
    | scope KEY
    | scope PROTOCOL_KEY"""
    p[0] = KeyValue(p[1].text if len(p) == 3 else None, p[len(p) - 1].text, _over(p))


def p_binary(p: Any) -> None:
    """narrow : arithmetic '+' arithmetic
    | arithmetic '-' arithmetic
    | arithmetic '*' arithmetic
    | arithmetic '/' arithmetic
    | arithmetic '&' arithmetic
    | arithmetic '|' arithmetic
    | arithmetic LSH arithmetic
    | arithmetic RSH arithmetic
    | arithmetic '%' arithmetic %prec NO_PRECEDENCE
    | arithmetic '^' arithmetic %prec NO_PRECEDENCE"""
    p[0] = Binary(p[2].text, p[1], p[3], _over(p))


def p_negate(p: Any) -> None:
    """narrow : '-' arithmetic %prec UMINUS"""
    p[0] = Negate(p[2], _over(p))


def p_arithmetic_parentheses(p: Any) -> None:
    """narrow : '(' narrow ')'"""
    p[0] = replace(p[2], span=_over(p))


def p_length(p: Any) -> None:
    """narrow : LEN"""
    p[0] = Length(p[1].span)


# --- the parser


class _SyntaxFault(Exception):
    """A token that does not fit, None at the end."""

    def __init__(self, token: Any):
        super().__init__()
        self.token = token


def p_error(token: Any) -> None:
    # PLY gives the handler nothing but the token; the parser's stacks are those of the parse under way.
    raise _SyntaxFault(token)


@cache
def _tables() -> Any:
    """A parser from the committed tables: building the grammar anew takes a hundred times as long. `yacc.yacc` would do the same,
    and look at each rule first.
    """
    table = yacc.LRTable()
    table.read_table("pcapext._parsetab")
    table.bind_callables(globals())
    return yacc.LRParser(table, p_error)


def parse(expression: str) -> Expression:
    """The tree of a filter that is not empty.

    Raises `FilterError` with the place, what stands there and what was expected.

    >>> parse("inner tcp port 80").qualifiers
    Qualifiers(scope='inner', protocol='tcp', direction=None, kind='port')
    """
    parser = copy(_tables())  # the stacks are attributes, and another thread may be at the same point
    try:
        tree: Expression = parser.parse(expression, lexer=make_lexer())
    except _SyntaxFault as fault:
        from pcapext.misfit import syntax_error  # here, since only an error needs it

        raise syntax_error(parser, fault.token, expression) from None
    return tree
