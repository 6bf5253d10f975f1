"""What the tests of libpcap's binding share: both libpcaps, the system's and the one inside the Python package libpcap."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pcapext.pcap_bridge import libpcap

_SPEC = importlib.util.find_spec("libpcap")
assert _SPEC is not None
assert _SPEC.origin is not None

#: The file inside the package, for this machine, and its version; the system's is what is found first.
PACKAGED = Path(_SPEC.origin).parent / "_platform" / "linux" / platform.machine() / "tcpdump" / "libpcap.so"


@pytest.fixture(params=["system", "packaged"])
def each_libpcap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both in turn; the one that is in use otherwise is back in use afterwards."""
    if request.param == "packaged":
        monkeypatch.setenv("PCAPEXT_LIBPCAP", str(PACKAGED))
    else:
        monkeypatch.delenv("PCAPEXT_LIBPCAP", raising=False)
    libpcap.cache_clear()
    yield request.param
    libpcap.cache_clear()


def descriptors() -> set[str]:
    """The open descriptors, each with what it is open on; not the one that this needs itself."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {text for text in found if not text.endswith("/fd")}


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """The test closes every file that it opens."""
    before = descriptors()
    yield
    assert descriptors() <= before
