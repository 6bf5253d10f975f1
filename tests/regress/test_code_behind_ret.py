"""Code behind a `ret` that nothing jumps to was taken for a part of its block, and the last `ret` for its end."""

from __future__ import annotations

from pcapext import bpf
from pcapext.bpf import Instruction
from pcapext.lift import lift


def test_the_first_ret_ends_the_program() -> None:
    assert str(lift([Instruction(bpf.RET_K, k=5), Instruction(bpf.LD_LEN), Instruction(bpf.RET_A)])) == "0: return 5"


def test_behind_a_test() -> None:
    instructions = [
        Instruction(bpf.LD_LEN),
        Instruction(bpf.JGT_K, 0, 2, 60),
        Instruction(bpf.RET_K, k=5),
        Instruction(bpf.RET_K, k=6),
        Instruction(bpf.RET_K, k=7),
    ]
    assert str(lift(instructions)) == "0: length gt 60 ? 2 : 4\n2: return 5\n4: return 7"
