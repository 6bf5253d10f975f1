"""Dataclasses with slots that cost little to make.

In:  a class with annotated fields, written as for `dataclasses.dataclass`.
Out: the class that `dataclasses.dataclass(slots=True)` makes of it. Type checkers take it for that, and what `dataclasses` has for
     objects (`fields`, `replace`, `asdict`) works with them.

`dataclasses` has Python compile a text for each method of each class, which takes 0.4 ms a class, and loads `inspect`, which takes
8 ms: of the start of `pcapext filter` these were a third. Here methods are functions that know the names of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["dataclass", "field", "replace"]

_MISSING: Any = object()


class _Field:
    """What `field` says of a field."""

    __slots__ = ("compare", "default", "default_factory", "init", "repr")

    def __init__(
        self, *, default: Any = _MISSING, default_factory: Any = _MISSING, init: bool = True, repr: bool = True, compare: bool = True
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.init = init
        self.repr = repr
        self.compare = compare

    def options(self) -> dict[str, Any]:
        """The arguments of `field` that were given."""
        given = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in given if value is not _MISSING}


def _dataclass(*, slots: bool, frozen: bool = False, eq: bool = True) -> Callable[[type], type]:
    assert slots

    def make(cls: type) -> type:
        assert not hasattr(cls, "__dataclass_fields__"), "fields of a base are not taken over"
        names = tuple(cls.__annotations__)
        namespace = dict(cls.__dict__)
        given = {name: namespace.pop(name, _MISSING) for name in names}
        fields = {name: value if isinstance(value, _Field) else _Field(default=value) for name, value in given.items()}
        for left in ("__dict__", "__weakref__"):  # belong to the class that has no slots
            namespace.pop(left, None)
        namespace["__slots__"] = names
        # What the class has itself stays.
        namespace.setdefault("__match_args__", tuple(name for name in names if fields[name].init))
        namespace.setdefault("__replace__", _replace)  # for copy.replace, from Python 3.13 on
        namespace.setdefault("__repr__", _repr_of([name for name in names if fields[name].repr]))
        if eq:
            values = _values_of([name for name in names if fields[name].compare])
            namespace.setdefault("__eq__", _eq_of(values))
            if namespace.get("__hash__") is None:
                namespace["__hash__"] = (lambda self: hash(values(self))) if frozen else None
        if frozen:
            namespace |= {"__setattr__": _refuse, "__delattr__": _refuse, "__getstate__": _getstate, "__setstate__": _setstate}
        namespace["__dataclass_fields__"] = _Later(fields, lambda twin: twin.__dataclass_fields__)
        namespace["__signature__"] = _Later(fields, _signature)
        made = type(cls)(cls.__name__, cls.__bases__, namespace)
        made.__qualname__ = cls.__qualname__
        made.__init__ = _init_of(made, fields)  # type: ignore[misc]
        return made

    return make


def _replace(object: Any, /, **changes: Any) -> Any:
    names = object.__match_args__
    return type(object)(*[changes.pop(name) if name in changes else getattr(object, name) for name in names], **changes)


def _values_of(names: Any) -> Callable[[Any], tuple[Any, ...]]:
    """A function that gives the fields of these names."""
    if len(names) > 1:
        return attrgetter(*names)  # of several it gives a tuple
    return lambda self: tuple([getattr(self, name) for name in names])


def _eq_of(values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return __eq__


def _repr_of(names: list[str]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    return __repr__


def _init_of(cls: type, fields: dict[str, _Field]) -> Callable[..., None]:
    names = tuple(name for name, field in fields.items() if field.init)
    count, post = len(names), getattr(cls, "__post_init__", None)
    # A slot's own way to set it, which does not ask __setattr__.
    sets = [cls.__dict__[name].__set__ for name in names]
    others = [
        (cls.__dict__[name].__set__, field.default) for name, field in fields.items() if not field.init and field.default is not _MISSING
    ]
    defaults = [fields[name].default for name in names]
    #: How many fields from the first one on a call has to give, if it gives them by their places.
    needed = max([place for place, default in enumerate(defaults, 1) if default is _MISSING], default=0)

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        values: Iterable[Any] = arguments
        if named or not needed <= len(arguments) <= count:
            values = bind(arguments, named)
        elif len(arguments) < count:
            values = (*arguments, *defaults[len(arguments) :])
        for set, value in zip(sets, values):  # noqa: B905  (`strict` takes time)
            set(self, value)
        for set, value in others:
            set(self, value)
        if post:
            post(self)

    def bind(arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """The value for each field."""
        if len(arguments) > count:
            raise TypeError(f"{cls.__qualname__}() takes {count} arguments, got {len(arguments)}")
        values = [*arguments]
        for name in names[len(arguments) :]:
            field = fields[name]
            if name in named:
                values.append(named.pop(name))
            elif field.default is not _MISSING:
                values.append(field.default)
            elif field.default_factory is not _MISSING:
                values.append(field.default_factory())
            else:
                raise TypeError(f"{cls.__qualname__}() has no argument for {name!r}")
        for name in named:
            raise TypeError(f"{cls.__qualname__}() got {'two arguments' if name in names else 'an unexpected argument'}: {name!r}")
        return values

    return __init__


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__slots__]


def _setstate(self: Any, values: list[Any]) -> None:
    for name, value in zip(self.__slots__, values, strict=True):
        object.__setattr__(self, name, value)


def _refuse(self: object, name: str, *value: object) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


class _Later:
    """An attribute of a class that, when it is asked for, is taken from its twin: the class that `dataclasses` makes of the same fields."""

    def __init__(self, fields: dict[str, _Field], of: Callable[[Any], Any]) -> None:
        self._fields = fields
        self._of = of

    def __set_name__(self, cls: type, name: str) -> None:
        self._name = name

    def __get__(self, _: object, cls: type) -> Any:
        from dataclasses import field, make_dataclass

        fields = [(name, cls.__annotations__[name], field(**each.options())) for name, each in self._fields.items()]
        value = self._of(make_dataclass(cls.__name__, fields))
        setattr(cls, self._name, value)
        return value


def _signature(twin: type) -> Any:
    from inspect import signature

    return signature(twin)


if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    dataclass, field, replace = _dataclass, _Field, _replace
