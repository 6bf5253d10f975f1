"""More than 16 locals that live at once were given slots that M[] does not have, instead of an error."""

from __future__ import annotations

import pytest
from graphs import graph_of

from pcapext.assemble import assemble
from pcapext.errors import FilterError


def test_seventeen_locals() -> None:
    assigned = "; ".join(f"L{number} := load1[{number}]" for number in range(17))
    total = "(" * 16 + "L0" + "".join(f" add L{number})" for number in range(1, 17))
    with pytest.raises(FilterError, match="too many registers"):
        assemble(graph_of(f"0: {assigned}; goto 1\n1: return {total}"))
