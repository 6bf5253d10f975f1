"""The kernel refused programs with two ends that read different slots of M[]: its check runs straight on through a `ret`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bpf_oracles import Kernel, libpcap_run
from graphs import evaluate, graph_of

from pcapext.assemble import assemble
from pcapext.bpf import kernel_fault


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.mark.kernel
def test_two_ends_that_read_memory(kernel: Kernel) -> None:
    cfg = graph_of(
        "0: load1[1] eq 5 ? 1 : 2\n"
        "1: A := load1[0]; load1[3] eq 5 ? 3 : 4\n"
        "2: X := load1[2]; M := X; load1[3] eq 5 ? 5 : 6\n"
        "3: return (A mul A)\n"
        "4: return (A mul 3)\n"
        "5: return (X sub M)\n"
        "6: return (M mul X)"
    )
    made = assemble(cfg)
    assert kernel_fault(made) is None
    assert kernel.accepts(made)
    for packet in (bytes([2, 5, 3, 5]), bytes([2, 4, 3, 5]), bytes([2, 5, 1, 4])):
        assert kernel.kept(packet) == min(evaluate(cfg, packet), 4)
        assert libpcap_run(made, packet, 4) == evaluate(cfg, packet)
