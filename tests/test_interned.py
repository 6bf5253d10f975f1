"""Interning: equal objects are one, however they come about, and are forgotten when nobody holds them."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from weakref import ref

import pytest
from graphs import random_graphs, values_in

from pcapext.cfg import Binary, Const, Goto, Length, Load, Local, Operator, Value
from pcapext.interned import Interned


def test_equal_ones_are_one() -> None:
    assert Load(2, Const(12)) is Load(2, Const(12))
    assert Load(2, Const(12)) is Load(2, Const(8), 4)  # which takes k into the offset
    assert Load(2, Length()) is Load(2, Length(), 0)  # a default
    assert Local("A") is Local("A", 0xFFFF_FFFF)
    assert Const(1) is not Const(2)
    assert {Goto(1): "a"}[Goto(1)] == "a"


def test_other_classes_with_the_same_fields_are_others() -> None:
    assert Goto(1) != Const(1)


def test_refused_fields_leave_nothing_behind() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no load of 3 bytes"):
            Load(3, Const(0))


def test_copies_and_pickles_are_the_object() -> None:
    for cfg, _ in random_graphs(20, seed=20):
        for value in values_in(cfg):
            assert pickle.loads(pickle.dumps(value)) is value
            assert copy.deepcopy(value) is value
            assert copy.copy(value) is value


def test_what_nobody_holds_is_forgotten() -> None:
    class Name(Interned):
        __slots__ = ("text",)
        __match_args__ = ("text",)

        def __init__(self, text: str):
            self.text = text

    name = Name("a")
    gone = ref(name)
    assert Name("a") is name
    del name
    gc.collect()
    assert gone() is None
    assert Name("a").text == "a"


def test_threads_get_the_same_object() -> None:
    threads, rounds = 4, 60
    barrier = Barrier(threads)

    def made(_: int) -> list[Value]:
        found = []
        for number in range(rounds):
            barrier.wait()
            found.append(Binary(Operator.XOR, Length(), Const(0xDEAD_0000 + number)))
        return found

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(made, range(threads)))
    for found in zip(*results, strict=True):
        assert len({id(value) for value in found}) == 1
