"""The table is well formed, its words compute what they say, and settings out of range are errors that say so."""

from __future__ import annotations

import importlib.util
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pcapext.encapsulation import (
    DEFAULT_SETTINGS,
    ENCAPSULATION_NAMES,
    ENCAPSULATIONS,
    LINK_LAYERS,
    TunnelPorts,
    WalkSettings,
)
from pcapext.errors import SettingsError
from pcapext.layout import Counted, Equals, Field, Identifier, IfSet, Length

ROOT = Path(__file__).parent.parent
NAMES = "vlan qinq mpls pppoe ipip 6in4 4in6 6in6 gre nvgre erspan etherip vxlan vxlan-gpe geneve gtpu teredo nsh"


def test_names_are_those_of_the_language() -> None:
    assert set(ENCAPSULATION_NAMES) == set(NAMES.split())
    assert len(ENCAPSULATION_NAMES) == len(set(ENCAPSULATION_NAMES))


def test_rows_have_a_name_and_a_place_of_their_own() -> None:
    assert max(Counter(row.name for row in ENCAPSULATIONS).values()) == 1
    places: list[object] = []
    for row in ENCAPSULATIONS:
        own = [("EtherType", number) for number in row.ethertypes]
        own += [("IP protocol", number, ip) for number in row.ip_protocols for ip in (0x0800, 0x86DD) if row.over in (None, ip)]
        own += [("ports", row.ports)] if row.ports else []
        own += [("GRE", number, row.gre_test) for number in row.gre_protocols]
        own += [("nibble", number) for number in row.nibbles]
        assert own, row.name
        places += own
    assert len(places) == len(set(places))


def test_ports_of_the_settings_are_those_of_the_rows() -> None:
    assert {row.ports for row in ENCAPSULATIONS} - {None} == set(TunnelPorts.DEFAULTS)


@pytest.mark.parametrize("row", ENCAPSULATIONS, ids=lambda row: row.name)
def test_rows_are_read_within_their_fixed_part(row: object) -> None:
    """Whatever is read before a header's length is known must be in the part that is there for certain."""
    fields = [row.requires.field] if row.requires else []  # type: ignore[attr-defined]
    fields += [part.flag if isinstance(part, IfSet) else part.count for part in row.length.parts]  # type: ignore[attr-defined]
    assert all(field.offset >= 0 and field.offset + field.size <= row.length.fixed for field in fields)  # type: ignore[attr-defined]


def test_page_of_the_documentation_is_fresh(tmp_path: Path) -> None:
    """docs/encapsulations.md is what the tool writes today."""
    spec = importlib.util.spec_from_file_location("generate_encapsulations", ROOT / "tools" / "generate_encapsulations.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.generate(tmp_path).read_text() == (ROOT / "docs" / "encapsulations.md").read_text()


def test_link_types_are_those_of_libpcap() -> None:
    # pcap/dlt.h; the numbers on Linux.
    assert {row.name: row.linktype for row in LINK_LAYERS} == {
        "EN10MB": 1,
        "RAW": 12,
        "IPV4": 228,
        "IPV6": 229,
        "LINUX_SLL": 113,
        "LINUX_SLL2": 276,
        "NULL": 0,
        "LOOP": 108,
        "PPP": 9,
    }


def test_words() -> None:
    data = bytes.fromhex("ff 8123 45678000 00000009")
    assert Field(0, 2).read(data, 1) == 0x8123
    assert Field(0, 4, 0x00FFF000, 12).read(data, 1) == 0x234
    assert Field(0, 4, 0x00FFF000, 12).largest == 0xFFF
    assert Field(0, 1).largest == 255
    assert Field(-1, 1).read(data, 1) == 0xFF
    assert Equals(Field(0, 1, 0x0F), 1).holds(data, 1)
    assert not Equals(Field(0, 1, 0x0F), 2).holds(data, 1)
    flag, clear = Field(0, 1, 0x80), Field(0, 1, 0x40)
    length = Length(2, (IfSet(flag, 4), IfSet(clear, 8), Counted(Field(1, 1, 0x03), 16)))
    assert length.end(data, 1) == 1 + 2 + 4 + 48
    assert length.end(data, len(data) - 1) is None
    assert Length(8, base=2).end(data, 1) == 3
    assert Identifier("key", Field(2, 4), flag, (IfSet(flag, 4),)).read(data, 1) == 9
    assert Identifier("key", Field(2, 4), clear).read(data, 1) is None


def test_field_has_a_size_that_bpf_loads() -> None:
    with pytest.raises(ValueError, match="1, 2 or 4 bytes, not 3"):
        Field(0, 3)


# ---- Settings ----


def test_default_settings() -> None:
    assert dict(DEFAULT_SETTINGS.tunnel_ports) == {
        "vxlan": (4789, 8472),
        "vxlan-gpe": (4790,),
        "geneve": (6081,),
        "gtpu": (2152,),
        "mpls": (6635,),
        "gre": (4754,),
        "teredo": (3544,),
    }
    settings = DEFAULT_SETTINGS
    assert (settings.max_levels, settings.vlan_tags, settings.mpls_labels) == (4, 3, 6)
    assert (settings.extension_headers, settings.gtpu_extensions) == (4, 2)


def test_settings_are_values() -> None:
    settings = WalkSettings(tunnel_ports={"vxlan": [4789], "teredo": []}, max_levels=2)
    assert settings.tunnel_ports["vxlan"] == (4789,)
    assert settings.tunnel_ports["teredo"] == ()
    assert settings.tunnel_ports["geneve"] == (6081,)
    assert sorted(settings.by_port) == [2152, 4754, 4789, 4790, 6081, 6635]
    same = WalkSettings(tunnel_ports={"teredo": (), "vxlan": (4789,)}, max_levels=2)
    assert settings == same
    assert len({settings, same, DEFAULT_SETTINGS, WalkSettings()}) == 2
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert replace(settings, max_levels=3).tunnel_ports == settings.tunnel_ports


@pytest.mark.parametrize("name", ["max_levels", "vlan_tags", "mpls_labels", "extension_headers", "gtpu_extensions"])
@pytest.mark.parametrize("number", [-1, 17, 2**70, 1.5, "3", None, True])
def test_bound_out_of_range(name: str, number: object) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} is .*, expected a number from [01] to 16$"):
        WalkSettings(**{name: number})  # type: ignore[arg-type]


def test_a_level_is_read() -> None:
    with pytest.raises(SettingsError, match="max_levels is 0, expected a number from 1 to 16"):
        WalkSettings(max_levels=0)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"vxlna": (1,)}, "no tunnel over UDP is called 'vxlna'; there are vxlan, vxlan-gpe, "),
        ({"vxlan": (0,)}, "tunnel port 0 of vxlan is not a number from 1 to 65535"),
        ({"gtpu": (65536,)}, "tunnel port 65536 of gtpu"),
        ({"gtpu": ("x",)}, "tunnel port 'x' of gtpu"),
        ({"vxlan": "4789"}, "tunnel port '4' of vxlan"),
        ({"vxlan": 4789}, "ports of vxlan are 4789, expected a list of numbers"),
        ({"vxlan": (5000,), "geneve": (5000,)}, "tunnel port 5000 is given to both vxlan and geneve"),
        ({"vxlan": (2152,)}, "tunnel port 2152 is given to both vxlan and gtpu"),
        ((4789,), r"tunnel_ports is \(4789,\), expected a mapping"),
    ],
)
def test_ports_that_cannot_be(ports: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        WalkSettings(tunnel_ports=ports)  # type: ignore[arg-type]


def test_a_port_named_twice_is_one_port() -> None:
    assert WalkSettings(tunnel_ports={"vxlan": (4789, 4789)}).by_port[4789].name == "vxlan"
