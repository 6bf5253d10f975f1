"""What libpcap refuses only behind another term was not found when each term was tried alone: the caret was below everything."""

from __future__ import annotations

import pytest

from pcapext.compiler import compile
from pcapext.errors import FilterError


@pytest.mark.parametrize(
    "text", ["mpls and vlan", "mpls and inner tcp and ip or vlan and ip6", "inner udp or (mpls or tcp) and (ip and vlan)"]
)
def test_the_term_is_found(text: str) -> None:
    with pytest.raises(FilterError, match="no VLAN match after MPLS") as caught:
        compile(text)
    assert caught.value.span is not None
    assert text[caught.value.span.start : caught.value.span.end] == "vlan"
