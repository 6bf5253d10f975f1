"""`protochain` makes a loop, which no graph can hold: with an extension term it was a ProgramError without a place."""

from __future__ import annotations

import pytest

from pcapext.compiler import compile
from pcapext.errors import FilterError


@pytest.mark.parametrize(
    "text", ["ip protochain 6 and inner tcp", r"inner tcp and (ip6 or protochain \tcp)", "poff > 5 or ip6 protochain 6"]
)
def test_it_is_an_error_with_its_place(text: str) -> None:
    with pytest.raises(FilterError, match="'protochain' makes a loop") as caught:
        compile(text)
    assert caught.value.span is not None
    assert text[caught.value.span.start : caught.value.span.end] in ("6", r"\tcp")
