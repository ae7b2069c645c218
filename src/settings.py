"""Typed settings: frozen dataclasses whose fields carry their help, their range and the names of their flags.

A component declares its settings beside itself::

    @dataclass(frozen=True)
    class SinkhornSettings:
        '''Assignments'''

        epsilon: float = setting(0.05, "entropy of the assignments", above=0, at_most=10)

and a script composes them as fields of a dataclass of its own. :mod:`src.cli` makes flags of them. The first line of a
class's docstring is the title of its flags in ``--help``. Field names are unique within a script, since they are the
names of the flags and of the entries of ``settings.json`` and of checkpoints.
"""

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import UserError

S = TypeVar("S")


@dataclass(frozen=True)
class Range:
    """Which numbers a setting may have. Bounds that are None do not exist."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """``from 1 to 1,000``, ``above 0, up to 1``, ..."""
        low = [f"from {self.at_least:,.10g}"] if self.at_least is not None else []
        low += [f"above {self.above:,.10g}"] if self.above is not None else []
        high = [f"to {self.at_most:,.10g}"] if self.at_most is not None else []
        high += [f"to below {self.below:,.10g}"] if self.below is not None else []
        if self.above is not None and high:
            return f"{low[0]}, up {high[0]}"
        return " ".join(low + high)


@dataclass(frozen=True)
class Word:
    """Another flag for a setting, such as a published program's.

    Attributes:
        flag: with ``--`` or ``-``.
        help: what it means.
        sets: the words after the flag -> the settings that it sets, by name.
        nargs: how many words follow, as in argparse.
    """

    flag: str
    help: str
    sets: Callable[[list[str]], Mapping[str, Any]]
    nargs: int | str = 0


@dataclass(frozen=True)
class Setting:
    """What is known about a field besides its name, type and default; see :func:`setting`."""

    help: str
    range: Range
    choices: tuple[str, ...]
    spellings: Mapping[str, str]
    flags: tuple[str, ...]
    own_flag: bool
    words: tuple[Word, ...]
    switch: bool
    required: bool
    empty: bool
    like: str
    more: str


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    spellings: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    own_flag: bool = True,
    words: Sequence[Word] = (),
    switch: bool = False,
    required: bool = False,
    empty: bool = False,
    like: str = "",
    more: str = "",
) -> Any:
    """A field of a settings class.

    Args:
        default: published value where there is one.
        help: what the value does, and what to use when.
        at_least, above, at_most, below: bounds of a number, or of each of several. Every number has some.
        choices: the words that are allowed.
        spellings: other spellings -> the word that is meant.
        flags: further names of the flag.
        own_flag: whether ``--NAME`` is a flag, besides ``flags``.
        words: other flags that set it.
        switch: the flag alone, without a value, means true.
        required: the user must give it, unless a script has a default.
        empty: the flag may come without any value, for an empty list.
        like: what words besides ``choices`` look like; they have a colon.
        more: the setting, a tuple, that takes further words after this one's flag.
    """
    bounds = Range(at_least, above, at_most, below)
    about = Setting(
        help,
        bounds,
        tuple(choices),
        dict(spellings or {}),
        tuple(flags),
        own_flag,
        tuple(words),
        switch,
        required,
        empty,
        like,
        more,
    )
    return dataclasses.field(default=default, metadata={"setting": about})


@dataclass(frozen=True)
class Leaf:
    """One setting of a composition: its owner (an instance), name, type, value and description."""

    owner: Any
    name: str
    type: Any
    value: Any
    about: Setting

    @property
    def flags(self) -> list[str]:
        """All names of its flag, the one that messages use first."""
        return [*([f"--{self.name}"] if self.about.own_flag else []), *self.about.flags]

    @property
    def item_type(self) -> type:
        """``int`` of ``int``, ``int | None`` and ``tuple[int, ...]``."""
        kind = self.plain_type
        arguments = typing.get_args(kind)
        return arguments[0] if arguments else kind

    @property
    def plain_type(self) -> Any:
        """The type without ``None``."""
        if isinstance(self.type, types.UnionType):
            return next(kind for kind in typing.get_args(self.type) if kind is not type(None))
        return self.type

    @property
    def is_optional(self) -> bool:
        return isinstance(self.type, types.UnionType)

    @property
    def is_tuple(self) -> bool:
        return typing.get_origin(self.plain_type) is tuple

    @property
    def length(self) -> int | None:
        """Of a tuple of a fixed length."""
        arguments = typing.get_args(self.plain_type)
        return None if not self.is_tuple or arguments[-1] is Ellipsis else len(arguments)


def leaves(settings: Any) -> Iterator[Leaf]:
    """Every setting of a composition, depth first, in the order of declaration."""
    hints = _hints(type(settings))
    for field in dataclasses.fields(settings):
        value = _of(settings, field.name)
        if "setting" in field.metadata:
            yield Leaf(settings, field.name, hints[field.name], value, field.metadata["setting"])
        else:
            yield from leaves(value)


def _hints(kind: type) -> dict[str, Any]:
    is_watched = "__getattribute__" in vars(kind)  # a class of its own for each call, see `watched`
    return _types_of(kind.__bases__[0] if is_watched else kind)


_types_of = functools.cache(typing.get_type_hints)


def flat(settings: Any) -> dict[str, Any]:
    """Name -> value, with lists in the place of tuples: what JSON and checkpoints hold."""
    return {leaf.name: _plain(leaf.value) for leaf in leaves(settings)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def replaced(settings: S, values: Mapping[str, Any]) -> S:
    """A copy with other values, by name; raises UserError for a name that there is not."""
    unknown = values.keys() - {leaf.name for leaf in leaves(settings)}
    if unknown:
        raise UserError(f"unknown settings: {', '.join(sorted(unknown))}")
    return _replaced(settings, values)


def _replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    new: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = _of(settings, field.name)
        if "setting" not in field.metadata:
            value = _replaced(value, values)
        elif field.name in values:
            value = values[field.name]
            value = tuple(value) if isinstance(value, list) else value
        new[field.name] = value
    return type(settings)(**new)


# What is read of settings is what has an effect: see `watched`
_of = object.__getattribute__


class Reads:
    """Names of settings that were read since they were watched."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.told: set[str] = set()  # those at the time when the user was told
        self._paused = False

    def add(self, names: Iterable[str]) -> None:
        if not self._paused:
            self.names.update(names)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For code that only shows settings."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def watched(settings: S, reads: Reads) -> S:
    """The same settings; what is read of them, from now on and also of copies, is noted.

    Nobody has to declare which setting matters for which method: a setting that no line of the program reads has no
    effect, and the user who gave it can be told.
    """
    return _watched(settings, reads)


def _watched(settings: Any, reads: Reads) -> Any:
    kind = type(settings)
    names = {field.name for field in dataclasses.fields(settings)}

    def read(self: Any, name: str) -> Any:
        if name in names:
            reads.add([name])
        elif name == "__dict__":  # vars(settings)
            reads.add(names)
        return _of(self, name)

    subclass = type(kind.__name__, (kind,), {"__getattribute__": read, "__doc__": kind.__doc__})
    subclass.__module__ = kind.__module__
    values = {name: _of(settings, name) for name in names}
    inner = {name: _watched(v, reads) if dataclasses.is_dataclass(v) else v for name, v in values.items()}
    return subclass(**inner)


def check(settings: Any) -> None:
    """Raises UserError for a value of another type, outside its range or not among its choices: one line."""
    for leaf in leaves(settings):
        if leaf.value is None and leaf.is_optional:
            continue
        values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        shown = f"{leaf.flags[0]} {' '.join(map(_shown, values))}"
        if isinstance(leaf.value, tuple) != leaf.is_tuple or not all(_fits(v, leaf.item_type) for v in values):
            raise UserError(f"{shown}: expected {_describe(leaf)}")
        if leaf.length not in (None, len(values)) or (leaf.is_tuple and not values and not leaf.about.empty):
            raise UserError(f"{shown}: expected {leaf.length or 'at least one'} values")
        if leaf.item_type in (int, float) and not all(map(leaf.about.range.holds, values)):
            raise UserError(f"{shown}: expected {_describe(leaf)}")
        allowed, like = leaf.about.choices, leaf.about.like
        wrong = [v for v in values if allowed and v not in allowed and not (like and ":" in v)]
        if wrong:
            expected = ", ".join([*allowed, *([like] if like else [])])
            raise UserError(f"{leaf.flags[0]} {wrong[0]}: invalid choice, expected {expected}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _describe(leaf: Leaf) -> str:
    if leaf.item_type is bool:
        return "true or false"
    if leaf.item_type is str:
        return "a word"
    kind = "whole number" if leaf.item_type is int else "number"
    kind = f"{kind}s" if leaf.is_tuple else f"a {kind}"
    return f"{kind} {leaf.about.range}"
