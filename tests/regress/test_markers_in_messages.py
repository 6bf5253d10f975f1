"""A filter too long for libpcap was shown with the markers in it that stand for extension terms."""

from __future__ import annotations

import pytest

from pcapext.compiler import compile
from pcapext.errors import FilterError


def test_the_user_sees_what_the_user_wrote() -> None:
    text = " or ".join(f"inner tcp port {port} and tcp" for port in range(2000))
    with pytest.raises(FilterError, match="too long for libpcap") as caught:
        compile(text)
    assert caught.value.expression == text
    assert "greater" not in str(caught.value)
