"""Resolve: what each extension term means, in flow keys and bytes of headers.

In:  the syntax tree of a filter.
Out: its `Extension`s in the order of the text: each term, or as large a part of the filter as consists of extension
     terms alone, that libpcap does not know.

What holds of an extension afterwards stands in extension.py.

libpcap reads a filter from left to right: a value without qualifiers takes those of the term before it, and
parentheses put back what was in force before them (grammar.y, the use of `$<blk>0`). The walk here goes the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import TypeVar

from pcapext import names
from pcapext.encapsulation import ENCAPSULATION_NAMES, ENCAPSULATIONS
from pcapext.errors import FilterError, Span, excerpt
from pcapext.extension import Extension, MixedRelation, Operand, Resolved, Term
from pcapext.headers import ETHERTYPE_IP, ETHERTYPE_IP6, HEADERS, STEPPED_OVER
from pcapext.slotted import dataclass, field, replace
from pcapext.syntax import (
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
    RelationOperator,
    Scope,
    Standard,
)

T = TypeVar("T")


def resolve(expression: str, tree: Expression, *, netmask: int | None = None) -> tuple[Extension, ...]:
    """The extensions of a filter.

    `netmask` is what `inner ip broadcast` takes for the network's. Raises `FilterError` for names that nothing knows and
    for terms that have no meaning where they stand, with the place.
    """
    return _Walk(expression, netmask).extensions(tree)


@dataclass(slots=True)
class _Walk:
    """One walk through a tree, from left to right."""

    expression: str
    netmask: int | None
    #: What the next value without qualifiers would take, and where that is written; None where there is nothing to take.
    inherited: tuple[Qualifiers, Span] | None = None
    #: Where the qualifiers of the value under way are written.
    head: Span = field(init=False)

    def extensions(self, tree: Expression) -> tuple[Extension, ...]:
        found: list[Extension] = []
        results: list[Resolved | None] = []

        # Steps still to take, the next one last. A tree may be as deep as the text is long: no recursion.
        steps: list[Callable[[], None]] = []

        def visit(node: Expression, scope: Scope | None) -> None:
            match node:
                case And() | Or():
                    steps.extend((partial(join, node), partial(visit, node.right, scope), partial(visit, node.left, scope)))
                case Not():
                    steps.extend((partial(negate, node), partial(visit, node.operand, scope)))
                case Group():
                    inside = self._scope(node.scope, scope, node.span)
                    steps.extend((partial(leave, node, self.inherited), partial(visit, node.operand, inside)))
                case Qualified():
                    own = self._scope(node.qualifiers.scope, scope, node.span)
                    head = self.expression[node.span.start : node.operand.span.start].rstrip()
                    self.inherited = replace(node.qualifiers, scope=own), Span(node.span.start, node.span.start + len(head))
                    steps.extend((partial(widen, node), partial(visit, node.operand, scope)))
                case Primitive():
                    results.append(self._primitive(node, scope))
                case _:
                    self.inherited = None
                    results.append(self._term(node, scope, found))

        def join(node: And | Or) -> None:
            right, left = results.pop(), results.pop()
            if left is not None and right is not None:
                results.append(type(node)(left, right, node.span))
                return
            found.extend(Term(part.span, part) for part in (left, right) if part is not None)
            results.append(None)

        def negate(node: Not) -> None:
            operand = results.pop()
            results.append(None if operand is None else Not(operand, node.span))

        def leave(node: Group, inherited: tuple[Qualifiers, Span] | None) -> None:
            self.inherited = inherited
            widen(node)

        def widen(node: Group | Qualified) -> None:
            if (operand := results[-1]) is not None:
                results[-1] = replace(operand, span=node.span)

        visit(tree, None)
        while steps:
            steps.pop()()
        (whole,) = results
        if whole is not None:
            found.append(Term(whole.span, whole))
        return tuple(sorted(found, key=lambda extension: extension.span.start))

    def _error(self, message: str, span: Span) -> FilterError:
        return FilterError(message, self.expression, span)

    def _look_up(self, span: Span, function: Callable[..., T], *arguments: object) -> T:
        """Call a function of names.py; its errors know no place."""
        try:
            return function(*arguments)
        except FilterError as error:
            raise self._error(error.message, span) from None

    def _scope(self, own: Scope | None, around: Scope | None, span: Span) -> Scope | None:
        if own is not None and around is not None and own != around:
            raise self._error(f"'{own}' has no meaning inside '{around} ( ... )'", span)
        return own or around

    def _meaningless(self, what: str, scope: Scope, span: Span) -> FilterError:
        return self._error(f"'{what}' has no meaning after '{scope}'", span)

    # --- terms without a value

    def _term(self, node: Expression, around: Scope | None, found: list[Extension]) -> Resolved | None:
        match node:
            case Protocol():
                scope = self._scope(node.scope, around, node.span)
                return None if scope is None else self._protocol(scope, node.protocol, node.span)
            case Cast():
                scope = self._scope(node.scope, around, node.span)
                return None if scope is None else self._cast(scope, node.protocol, node.cast, node.span)
            case Relation():
                return self._relation(node, around, found)
            case Encap():
                if around is not None:
                    raise self._meaningless("encap", around, node.span)
                if node.name not in (None, *ENCAPSULATION_NAMES):
                    known = ", ".join(ENCAPSULATION_NAMES)
                    raise self._error(f"unknown encapsulation '{excerpt(str(node.name))}', expected one of {known}", node.span)
                if node.identifier is not None:
                    self._check_identifier(str(node.name), node.identifier, node.span)
                return node if node.name is not None else _relation(">", KeyValue("inner", "depth", node.span), 0, node.span)
            case Standard():
                if around is not None:
                    raise self._meaningless(node.word, around, node.span)
                return None
        raise AssertionError(f"{type(node).__name__} is no term")

    def _check_identifier(self, name: str, number: int, span: Span) -> None:
        identifiers = [row.identifier for row in ENCAPSULATIONS if name in row.words and row.identifier is not None]
        if not identifiers:
            raise self._error(f"'encap {name}' takes no number: its header has no identifier", span)
        largest = max(identifier.field.largest for identifier in identifiers)
        if number > largest:
            raise self._error(f"{identifiers[0].name} {number} greater than maximum {largest}", span)

    def _protocol(self, scope: Scope, word: str, span: Span) -> Resolved:
        header = HEADERS.get(word)
        if header is None or word == "ether":
            raise self._meaningless(word, scope, span)
        if header.protocol is None:
            return _key("nproto", header.ethertype, scope, span)
        return _transport(header.protocol, header.ethertype, scope, span)

    def _cast(self, scope: Scope, protocol: str | None, cast: str, span: Span) -> Resolved:
        if protocol is not None and protocol not in HEADERS:
            raise self._meaningless(protocol, scope, span)
        match protocol or "ether", cast:
            case "ether", "multicast":
                return _relation("!=", Binary("&", _bytes(scope, "ether", 0, 1, span), Number(1, span), span), 0, span)
            case "ether", "broadcast":
                return _ethernet(scope, "dst", 0xFFFF_FFFF_FFFF, span)
            case "ip", "multicast":
                return _relation(">=", _bytes(scope, "ip", 16, 1, span), 224, span)
            case "ip6", "multicast":
                return _relation("=", _bytes(scope, "ip6", 24, 1, span), 255, span)
            case "ip", "broadcast":
                if self.netmask is None:
                    raise self._error("netmask not known, so 'ip broadcast' not supported", span)
                hosts = ~self.netmask & 0xFFFF_FFFF
                zeros, ones = (_masked(_bytes(scope, "ip", 16, 4, span), host, hosts, span) for host in (0, hosts))
                return _any(span, zeros, ones)
        raise self._error(f"only link-layer/IP {cast} filters supported", span)

    # --- values

    def _primitive(self, node: Primitive, around: Scope | None) -> Resolved | None:
        if self.inherited is None:
            text = excerpt(self.expression[node.span.start : node.span.end])
            raise self._error(f"'{text}' stands alone, expected qualifiers before it such as 'host' or 'port'", node.span)
        qualifiers, self.head = self.inherited
        scope, kind = self._scope(qualifiers.scope, around, node.span), qualifiers.kind or "host"
        if kind in ("tproto", "nproto"):
            return self._key_is(kind, scope or "inner", node)
        if scope is None:
            return None
        if qualifiers.protocol is not None and qualifiers.protocol not in HEADERS:
            raise self._meaningless(qualifiers.protocol, scope, self.head)
        match kind:
            case "host" | "net":
                return self._address(qualifiers, scope, kind, node)
            case "port" | "portrange":
                return self._port(qualifiers, scope, kind, node)
            case "proto":
                return self._proto(qualifiers, scope, node)
        raise self._meaningless(kind, scope, self.head)

    def _key_is(self, key: str, scope: Scope, node: Primitive) -> Resolved:
        span, largest = node.span, 0xFFFF if key == "nproto" else 0xFF
        match key, node.value:
            case _, Number(number):
                if number > largest:
                    raise self._error(f"{number} is out of range for '{key}', expected 0 to {largest}", span)
            case "nproto", Name(name):
                if name in HEADERS and HEADERS[name].protocol:
                    raise self._error(f"'{name}' is no network protocol, expected one or 'tproto {name}'", span)
                number = self._look_up(span, names.ethertype, name)
            case _, Name(name):
                if name in HEADERS and HEADERS[name].base == "nhoff":
                    raise self._error(f"'{name}' is no transport protocol, expected one or 'nproto {name}'", span)
                known = HEADERS[name].protocol if name in HEADERS else None
                number = self._look_up(span, names.ip_protocol, name) if known is None else known
            case _:
                raise self._error(f"expected a name or a number of a protocol after '{key}'", span)
        return _key(key, number, scope, span)

    def _address(self, qualifiers: Qualifiers, scope: Scope, kind: str, node: Primitive) -> Resolved:
        span, value = node.span, node.value
        if qualifiers.direction not in _SIDES:
            message = f"'{qualifiers.direction}' is not a valid qualifier for addresses other than 802.11 MAC addresses"
            raise self._error(message, self.head)
        if qualifiers.protocol == "ether":
            return _ethernet(scope, qualifiers.direction, self._ethernet_address(kind, node), span)
        ipv4, ipv6 = partial(self._ipv4, qualifiers, scope, node), partial(self._ipv6, qualifiers, scope, node)
        match value:
            case Name(name) if kind == "net":
                return ipv4(*self._look_up(span, names.net_name, name))
            case Name(name):
                hosts = self._look_up(span, names.host_addresses, name)
                versions = {"ip": (4,), "ip6": (6,)}.get(qualifiers.protocol or "", (4, 6))
                wanted = [host for host in hosts if host.version in versions]
                if not wanted:
                    raise self._error(f"unknown host '{excerpt(name)}' for specified address family", span)
                return _any(
                    span, *(ipv4(int(host), 0xFFFF_FFFF) if host.version == 4 else ipv6(int(host), (1 << 128) - 1) for host in wanted)
                )
            case Number(number):
                return ipv4(*(names.number_network(number) if kind == "net" else (number, 0xFFFF_FFFF)))
            case Ipv4(text, None, None):
                address, bits = self._look_up(span, names.ipv4_literal, text)
                return ipv4(address << 32 - bits, 0xFFFF_FFFF << 32 - bits & 0xFFFF_FFFF)
            case Ipv4(text, prefix, mask):
                network = self._look_up(span, names.ipv4_network, text, prefix, mask)
                if kind != "net":
                    raise self._error("Mask syntax for networks only", span)
                return ipv4(*network)
            case Ipv6(text, prefix):
                network = self._look_up(span, names.ipv6_network, text, 128 if prefix is None else prefix)
                if kind != "net" and prefix not in (None, 128):
                    raise self._error("Mask syntax for networks only", span)
                return ipv6(*network)
            case Mac():
                raise self._error("ethernet address used in non-ether expression", span)
            case Arcnet():
                raise self._error("aid supported only on ARCnet", span)

    def _ethernet_address(self, kind: str, node: Primitive) -> int:
        match node.value:
            case Name(name) if kind == "host":
                return int.from_bytes(self._look_up(node.span, names.ethernet_host, name), "big")
            case Mac(text) if kind == "host":
                return int.from_bytes(self._look_up(node.span, names.ethernet_address, text), "big")
        raise self._error("illegal link layer address" if kind == "host" else f"link-layer modifier applied to {kind}", node.span)

    def _ipv4(self, qualifiers: Qualifiers, scope: Scope, node: Primitive, address: int, mask: int) -> Resolved:
        kind = qualifiers.kind or "host"
        # gencode.c, gen_host: where the two addresses stand in each header; an address alone is sought in all three.
        places = {"ip": (12, 16), "arp": (14, 24), "rarp": (14, 24)}
        if qualifiers.protocol == "ip6":
            raise self._error("'ip6' modifier applied to ip host", node.span)
        if qualifiers.protocol is not None and qualifiers.protocol not in places:
            raise self._error(f"'{qualifiers.protocol}' modifier applied to {kind}", self.head)

        def match_at(header: str, offset: int) -> Resolved:
            return _masked(_bytes(scope, header, offset, 4, node.span), address, mask, node.span)

        return _any(
            node.span,
            *(
                _sides(qualifiers.direction, *(match_at(header, offset) for offset in places[header]))
                for header in ([qualifiers.protocol] if qualifiers.protocol else places)
            ),
        )

    def _ipv6(self, qualifiers: Qualifiers, scope: Scope, node: Primitive, address: int, mask: int) -> Resolved:
        if qualifiers.protocol not in (None, "ip6"):
            raise self._error(f"'{qualifiers.protocol}' modifier applied to ip6 {qualifiers.kind or 'host'}", node.span)

        def match_at(offset: int) -> Resolved:
            words = [(address >> shift & 0xFFFF_FFFF, mask >> shift & 0xFFFF_FFFF, 12 - shift // 8) for shift in (96, 64, 32, 0)]
            tests = [_masked(_bytes(scope, "ip6", offset + at, 4, node.span), word, bits, node.span) for word, bits, at in words if bits]
            return _all(node.span, *(tests or [_key("nproto", ETHERTYPE_IP6, scope, node.span)]))

        return _sides(qualifiers.direction, match_at(8), match_at(24))

    def _port(self, qualifiers: Qualifiers, scope: Scope, kind: str, node: Primitive) -> Resolved:
        span, protocol = node.span, qualifiers.protocol
        if qualifiers.direction not in _SIDES:
            raise self._error(f"'{qualifiers.direction}' is not a valid qualifier for ports", self.head)
        if protocol not in (None, "tcp", "udp", "sctp") and isinstance(node.value, Name | Number):
            raise self._error(f"illegal qualifier of '{kind}'", self.head)
        match node.value:
            case Ipv4(_, None, None):
                raise self._error(f"'{kind}' modifier applied to ip host", span)
            case Ipv4():
                raise self._error("Mask syntax for networks only", span)
            case Ipv6():
                raise self._error("invalid qualifier against IPv6 address", span)
            case Mac():
                raise self._error("ethernet address used in non-ether expression", span)
            case Arcnet():
                raise self._error("aid supported only on ARCnet", span)
            case Number(number):
                low, high = self._look_up(span, names.number_port, number)
            case Name(name):
                low, high, protocol = self._look_up(span, names.named_ports, name, kind, protocol)
        wanted = [HEADERS[word].protocol for word in ([protocol] if protocol else ("tcp", "udp", "sctp"))]

        def match_at(offset: int) -> Resolved:
            port = _bytes(scope, "transport", offset, 2, span)
            if low == high:
                return _relation("=", port, low, span)
            return _all(span, _relation(">=", port, low, span), _relation("<=", port, high, span))

        transport = _any(span, *(_key("tproto", number, scope, span) for number in wanted))
        return _all(span, transport, _sides(qualifiers.direction, match_at(0), match_at(2)))

    def _proto(self, qualifiers: Qualifiers, scope: Scope, node: Primitive) -> Resolved:
        span, protocol = node.span, qualifiers.protocol
        if protocol not in (None, "ip", "ip6", "ether"):
            raise self._error(f"'{protocol} proto' is bogus", self.head)
        match node.value:
            case Number(number):
                pass
            case Name(name):
                number = self._look_up(span, names.ethertype if protocol == "ether" else names.ip_protocol, name)
            case Ipv4():
                raise self._error("'proto' modifier applied to ip host", span)
            case _:
                raise self._error("expected a name or a number of a protocol after 'proto'", span)
        if protocol != "ether":
            return _transport(number, {"ip": ETHERTYPE_IP, "ip6": ETHERTYPE_IP6}.get(protocol or ""), scope, span)
        if number < 0x600:
            # gencode.c, gen_linktype: an LLC service access point. The walk ends at 802.3 frames.
            raise self._meaningless(f"ether proto {number}", scope, self.head.cover(span))
        return _key("nproto", number, scope, span)

    # --- relations

    def _relation(self, node: Relation, around: Scope | None, found: list[Extension]) -> Resolved | None:
        left, right = self._arithmetic(node.left, around), self._arithmetic(node.right, around)
        ours = [_is_ours(side) for side in (left, right)]
        if all(ours) and (around is not None or _has_extension(left) or _has_extension(right)):
            return Relation(node.operator, left, right, node.span)
        operands = tuple(_operands(left)) + tuple(_operands(right))
        if operands:
            found.append(MixedRelation(node.span, operands))
        return None

    def _arithmetic(self, node: Arithmetic, around: Scope | None) -> Arithmetic:
        """The same arithmetic with every scope filled in; depth is bounded by the parser."""
        match node:
            case Number():
                return node
            case Length():
                if around is not None:
                    raise self._meaningless("len", around, node.span)
                return node
            case KeyValue():
                return replace(node, scope=self._scope(node.scope, around, node.span) or "inner")
            case Payload():
                scope = self._scope(node.scope, around, node.span) or "inner"
                return self._access(Access(scope, "payload", self._arithmetic(node.index, around), node.size, node.span))
            case Access():
                scope_or_none = self._scope(node.scope, around, node.span)
                return self._access(replace(node, scope=scope_or_none, index=self._arithmetic(node.index, around)))
            case Negate():
                return replace(node, operand=self._arithmetic(node.operand, around))
            case Binary():
                left, right = self._arithmetic(node.left, around), self._arithmetic(node.right, around)
                self._check_constant(node, right)
                return replace(node, left=left, right=right)

    def _access(self, node: Access) -> Access:
        if node.size not in (1, 2, 4):
            raise self._error("data size must be 1, 2, or 4", node.span)
        if node.scope is None:
            return node
        header = HEADERS.get(node.protocol)
        if header is None or not header.indexable:
            raise self._meaningless(f"{node.protocol}[...]", node.scope, node.span)
        if not _is_ours(node.index):
            what = f"the index of '{node.scope} {node.protocol}[...]' cannot read bytes that have no '{node.scope}' before them"
            raise self._error(what, node.index.span)
        return node

    def _check_constant(self, node: Binary, right: Arithmetic) -> None:
        # The same refusals in the same words as gencode.c, gen_arth.
        match node.operator, right:
            case "/", Number(0):
                raise self._error("division by zero", node.span)
            case "%", Number(0):
                raise self._error("modulus by zero", node.span)
            case "<<" | ">>", Number(count) if count > 31:
                raise self._error("shift by more than 31 bits", node.span)


_SIDES = (None, "src", "dst", "src or dst", "src and dst")


def _sides(direction: str | None, source: Resolved, destination: Resolved) -> Resolved:
    match direction:
        case "src":
            return source
        case "dst":
            return destination
        case "src and dst":
            return _all(source.span, source, destination)
    return _any(source.span, source, destination)


def _any(span: Span, *parts: Resolved) -> Resolved:
    return reduce(lambda left, right: Or(left, right, span), parts)


def _all(span: Span, *parts: Resolved) -> Resolved:
    return reduce(lambda left, right: And(left, right, span), parts)


def _relation(operator: RelationOperator, left: Arithmetic, right: int, span: Span) -> Relation:
    return Relation(operator, left, Number(right, span), span)


def _key(key: str, value: int | None, scope: Scope, span: Span) -> Relation:
    assert value is not None
    return _relation("=", KeyValue(scope, key, span), value, span)


def _bytes(scope: Scope, header: str, offset: int, size: int, span: Span) -> Access:
    return Access(scope, header, Number(offset, span), size, span)


def _masked(access: Access, value: int, mask: int, span: Span) -> Relation:
    if mask == 0xFFFF_FFFF:
        return _relation("=", access, value, span)
    return _relation("=", Binary("&", access, Number(mask, span), span), value, span)


def _ethernet(scope: Scope, direction: str | None, address: int, span: Span) -> Resolved:
    def match_at(offset: int) -> Resolved:
        # As gencode.c, gen_bcmp, cuts six bytes: the last four, then the first two.
        low = _relation("=", _bytes(scope, "ether", offset + 2, 4, span), address & 0xFFFF_FFFF, span)
        return _all(span, low, _relation("=", _bytes(scope, "ether", offset, 2, span), address >> 32, span))

    return _sides(direction, match_at(6), match_at(0))


def _transport(protocol: int, ethertype: int | None, scope: Scope, span: Span) -> Resolved:
    """The innermost network header, IPv4 or IPv6 or the one that is given, carries this protocol.

    A protocol that the walk steps over is no `tproto`: then the header itself is asked, as libpcap does (gencode.c,
    gen_proto), which for IPv6 also looks behind a fragment header.
    """
    if protocol not in STEPPED_OVER:
        transport = _key("tproto", protocol, scope, span)
        return transport if ethertype is None else _all(span, _key("nproto", ethertype, scope, span), transport)
    in_ip = _relation("=", _bytes(scope, "ip", 9, 1, span), protocol, span)
    next_header = _bytes(scope, "ip6", 6, 1, span)
    behind_fragment = _relation("=", _bytes(scope, "ip6", 40, 1, span), protocol, span)
    in_ip6 = _any(span, _relation("=", next_header, protocol, span), _all(span, _relation("=", next_header, 44, span), behind_fragment))
    return {ETHERTYPE_IP: in_ip, ETHERTYPE_IP6: in_ip6}[ethertype] if ethertype else _any(span, in_ip, in_ip6)


def _is_ours(node: Arithmetic) -> bool:
    """Whether arithmetic needs nothing of libpcap."""
    match node:
        case Access():
            return node.scope is not None
        case Binary():
            return _is_ours(node.left) and _is_ours(node.right)
        case Negate():
            return _is_ours(node.operand)
    return True


def _has_extension(node: Arithmetic) -> bool:
    """Whether arithmetic that needs nothing of libpcap needs something of pcapext."""
    match node:
        case KeyValue() | Access():
            return True
        case Binary():
            return _has_extension(node.left) or _has_extension(node.right)
        case Negate():
            return _has_extension(node.operand)
    return False


def _operands(node: Arithmetic) -> Iterable[Operand]:
    """The parts of arithmetic that are pcapext's, each as large as it can be."""
    if _is_ours(node):
        if _has_extension(node):
            yield Operand(node.span, node)
        return
    match node:
        case Access():
            yield from _operands(node.index)
        case Binary():
            yield from _operands(node.left)
            yield from _operands(node.right)
        case Negate():
            yield from _operands(node.operand)
