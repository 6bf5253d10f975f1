"""Interned objects: what is equal is one object, so to compare it and to hash it costs the same however deep it is.

In:  a frozen dataclass with `slots=True, eq=False` that derives from `Interned`, and whose fields can be hashed.
Out: the same class, but a call of it gives the object that there is with these fields, as long as somebody holds it.

An object that nobody holds is forgotten: nothing grows with the number of filters that a process compiles.
"""

from __future__ import annotations

from _thread import allocate_lock  # what threading.Lock is; `threading` itself is not needed
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

#: By class and arguments. An object that is made of other arguments than its fields, defaults left out, stands here twice.
_KNOWN: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()

#: Two threads that make an object with the same fields must get the same one.
_LOCK = allocate_lock()


class _Interning(type):
    """The class of these classes: it has the call that makes an object."""

    def __call__(cls: type[T], *arguments: Any) -> T:
        key = (cls, *arguments)
        known: T | None = _KNOWN.get(key)
        if known is not None:
            return known
        made: Any = type.__call__(cls, *arguments)  # which may change the fields, or refuse them
        fields = (cls, *made.fields)
        with _LOCK:
            known = _KNOWN.get(fields)
            if known is None:
                _KNOWN[fields] = known = made
            if fields != key:
                _KNOWN[key] = known
        return known


class Interned(metaclass=_Interning):
    """The base of classes whose equal objects are one."""

    __slots__ = ("__weakref__",)
    __match_args__: tuple[str, ...]

    @property
    def fields(self) -> tuple[Any, ...]:
        """The fields, in their order."""
        return tuple(map(self.__getattribute__, self.__match_args__))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """How it is copied and pickled: by a call, so that it is the one object wherever it is read."""
        return type(self), self.fields
