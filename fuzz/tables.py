"""Writes the tables that the walk goes by, one after the other, for walk.c: `python fuzz/tables.py FILE`.

In:  encapsulation.py.
Out: `struct walk_table`s: for each link type one with the usual settings and one that walks as far as there is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pcapext.encapsulation import LINK_LAYERS, WalkSettings
from pcapext.engine import ffi
from pcapext.engine.walk import walk_table

FARTHEST = WalkSettings(max_levels=16, vlan_tags=16, mpls_labels=16, extension_headers=16, gtpu_extensions=16)

if __name__ == "__main__":
    tables = [walk_table(layer.linktype, settings) for layer in LINK_LAYERS for settings in (None, FARTHEST)]
    Path(sys.argv[1]).write_bytes(b"".join(bytes(ffi.buffer(table)) for table in tables))
