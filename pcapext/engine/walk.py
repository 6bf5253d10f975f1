"""The walk in C: from the rows of encapsulation.py to the table that it reads.

In:  a link type, and the settings of the walk.
Out: `walk_table`, what a `Matcher` of a program with flow keys needs; `dissect`, the flow keys of a packet.

The rows are copied as they stand: engine.h has a struct for each class of layout.py. The dictionaries of encapsulation.py
become arrays, which have the index of a row, 0 for none. That the C walk gives the keys of `pcapext.dissect` is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pcapext import encapsulation as rows
from pcapext.encapsulation import DEFAULT_SETTINGS, WalkSettings
from pcapext.engine import ffi, lib
from pcapext.flowkeys import KEY_BY_NAME, KEYS_K, NO_ETHERNET, FlowKeys
from pcapext.layout import (
    Always,
    ByEtherType,
    ByNibble,
    ByNumber,
    Counted,
    Encapsulation,
    Equals,
    Extensions,
    Field,
    IfSet,
    Length,
    Next,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: The values of a struct by the names of its fields, as cffi takes them. What is not named is 0.
_Struct = dict[str, Any]

#: The names of the keys in the order of `struct flow_keys`.
_KEYS = tuple(name for name, _ in ffi.typeof("struct flow_keys").fields)


def dissect(packet: Buffer, linktype: int = 1, settings: WalkSettings | None = None) -> FlowKeys:
    """The flow keys of `packet`, any contiguous buffer: what `pcapext.dissect.dissect` gives, with its errors, in less time.

    >>> dissect(bytes.fromhex("ffffffffffff 020000000002 0806"))
    FlowKeys(nhoff=14, nproto=2054, thoff=0, tproto=0, poff=0, depth=0, lhoff=0)
    """
    keys = ffi.new("struct flow_keys *")
    data = ffi.from_buffer("uint8_t[]", packet)
    # No more than the walk sees: a packet may be longer than a uint32_t says.
    lib.walk(walk_table(linktype, settings), data, min(len(data), rows.WALKED_BYTES), keys)
    return FlowKeys(keys.nhoff, keys.nproto, keys.thoff, keys.tproto, keys.poff, keys.depth, keys.lhoff)


@lru_cache(maxsize=16)
def walk_table(linktype: int, settings: WalkSettings | None = None) -> Any:
    """The `struct walk_table *` of a link type, with `settings` or the usual ones. It must be held as long as C uses it.

    Raises `FilterError` for a link type that the walk cannot start at.
    """
    settings = settings or DEFAULT_SETTINGS
    link_layer = rows.link_layer_of(linktype)
    bounds = dict(settings.bounds)
    counted = [None, *dict.fromkeys(row.bound for row in rows.ENCAPSULATIONS if row.bound)]
    encapsulations = [None, *rows.ENCAPSULATIONS]
    extensions = [None, *rows.EXTENSION_HEADERS]
    table = ffi.new(
        "struct walk_table *",
        {
            "k": [KEY_BY_NAME[name].k for name in _KEYS],
            "all_k": KEYS_K,
            "walked_bytes": rows.WALKED_BYTES,
            "link_length": link_layer.length,
            "link_next": _next(link_layer.next),
            "link_lhoff": 0 if link_layer.is_ethernet else NO_ETHERNET,
            "max_levels": settings.max_levels,
            "extension_headers": settings.extension_headers,
            "bounds": [bounds[name] if name else 0 for name in counted],
            "in_gre_count": sum(len(row.gre_protocols) for row in rows.ENCAPSULATIONS),
            "in_gre": [
                {"protocol": protocol, "test": _equals(row.gre_test), "encapsulation": encapsulations.index(row)}
                for row in rows.ENCAPSULATIONS
                for protocol in row.gre_protocols
            ],
            "extensions": [{"length": _length(row.length), "fragment": _field(row.fragment)} if row else {} for row in extensions],
            "encapsulations": [_encapsulation(row, bounds) | {"bound": counted.index(row.bound)} if row else {} for row in encapsulations],
        },
    )
    for number, row in rows.BY_ETHERTYPE.items():
        table.by_ethertype[number] = encapsulations.index(row)
    for number, row in rows.BY_NIBBLE.items():
        table.by_nibble[number] = encapsulations.index(row)
    for number, row in settings.by_port.items():
        table.by_port[number] = encapsulations.index(row)
    for version, nproto in enumerate((rows.IPV4, rows.IPV6)):
        protocols = table.ip_protocols[version]
        for protocol, length in rows.TRANSPORT_LENGTHS.items():
            protocols[protocol].transport_length = length
        for (ip, protocol), row in rows.BY_IP_PROTOCOL.items():
            if ip == nproto:
                protocols[protocol].encapsulation = encapsulations.index(row)
        for header in rows.EXTENSION_HEADERS:
            if header.in_ipv4 or nproto == rows.IPV6:
                protocols[header.protocol].extension_header = extensions.index(header)
    return table


# ---- The structs of engine.h ----


def _encapsulation(row: Encapsulation, bounds: dict[str, int]) -> _Struct:
    return {
        "next": _next(row.next),
        "length": _length(row.length),
        "requires": _equals(row.requires),
        "repeats": _equals(row.repeats),
        "extensions": _extensions(row.extensions, bounds),
        "prefix_count": len(row.prefixes),
        "prefixes": [{"test": _equals(prefix.test), "length": _length(prefix.length)} for prefix in row.prefixes],
        "begins_level": row.begins_level,
        "is_gre": row.name == "gre",
    }


def _field(field: Field | None) -> _Struct:
    return {"offset": field.offset, "size": field.size, "mask": field.mask, "shift": field.shift} if field else {}


def _equals(test: Equals | None) -> _Struct:
    return {"field": _field(test.field), "value": test.value} if test else {}


def _length(length: Length) -> _Struct:
    return {"fixed": length.fixed, "base": length.base, "count": len(length.parts), "parts": [_part(part) for part in length.parts]}


def _part(part: IfSet | Counted) -> _Struct:
    match part:
        case IfSet(flag, length):
            return {"field": _field(flag), "most": 1, "bytes": length}
        case Counted(count, unit):
            return {"field": _field(count), "most": count.largest, "bytes": unit}


def _next(by: Next) -> _Struct:
    match by:
        case Always(ethertype):
            return {"kind": lib.NEXT_ALWAYS, "ethertype": ethertype}
        case ByEtherType(field):
            return {"kind": lib.NEXT_BY_ETHERTYPE, "field": _field(field)}
        case ByNumber(field, pairs):
            return {"kind": lib.NEXT_BY_NUMBER, "field": _field(field), **_pairs(pairs)}
        case ByNibble(pairs):
            return {"kind": lib.NEXT_BY_NIBBLE, **_pairs(pairs)}


def _pairs(pairs: Sequence[tuple[int, int]]) -> _Struct:
    return {"count": len(pairs), "pairs": [{"number": number, "ethertype": ethertype} for number, ethertype in pairs]}


def _extensions(chain: Extensions | None, bounds: dict[str, int]) -> _Struct:
    if chain is None:
        return {}
    return {"flag": _field(chain.flag), "first": _field(chain.first), "length": _length(chain.length), "bound": bounds[chain.bound]}
