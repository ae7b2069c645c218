"""From the command line to typed settings: flags made of their fields, other spellings, words of published programs."""

import argparse
import dataclasses
import difflib
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from ..errors import UserError
from ..parallel.launch import rank_in_environment
from ..settings import Leaf, Reads, Word, check, leaves, replaced, watched
from .retired import RETIRED, RETIRED_SWITCHES

S = TypeVar("S")


@dataclass(frozen=True)
class Call(Generic[S]):
    """A command line that was understood.

    Attributes:
        settings: every setting, with the defaults filled in.
        given: those that the user typed (or that a ``--config`` file says the user typed), by name.
        flags: the long flags on the command line, as they were typed but for ``_``.
        command: the line itself.
        reads: which settings were read since.
    """

    settings: S
    given: Mapping[str, Any]
    flags: frozenset[str]
    command: str
    reads: Reads = dataclasses.field(default_factory=Reads)

    def tell_unread(self) -> None:
        """Warns of settings that were given and that nothing has read; to be called when everything is built."""
        self.reads.told = set(self.reads.names)
        unread = [
            leaf for leaf in leaves(self.settings) if leaf.name in self.given and leaf.name not in self.reads.names
        ]
        for leaf in unread:
            _warn(f"{leaf.flags[0]} has no effect with the other flags that were given")


def boolean(text: str) -> bool:
    """``on``, ``true``, ``1`` or ``off``, ``false``, ``0``, in any case."""
    if text.lower() in ("on", "true", "1"):
        return True
    if text.lower() in ("off", "false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a boolean: expected true or false")


def whole(text: str) -> int:
    """A whole number; also read from floats such as 1e10, which published commands use."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text) if text.lstrip("+-").isdigit() else int(value)


def real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


READERS: dict[type, Callable[[str], Any]] = {bool: boolean, int: whole, float: real, str: str}


class _Remember(argparse.Action):
    """Stores what a :class:`src.settings.Word` means."""

    word: Word

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = values if isinstance(values, list) else [] if values is None else [values]
        try:
            meant = self.word.sets(words)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument {option_string}: {error}")
        for name, value in meant.items():
            setattr(namespace, name, value)


class _FirstAndMore(argparse.Action):
    """Stores the first word, and the others under another name."""

    more: str

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values[0])
        if values[1:]:
            setattr(namespace, self.more, values[1:])


class _Parser(argparse.ArgumentParser):
    """Errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


@dataclass(frozen=True)
class Script(Generic[S]):
    """How the command line of a script is read.

    Attributes:
        description: one line.
        settings: all settings with their defaults.
        positionals: settings that may also be given as plain words, anywhere on the line and in this order; a tuple
            takes all words that are left.
        complete: what was given -> the settings, for scripts whose defaults depend on other settings. Settings with a
            method ``adapted`` adapt themselves to what was given after that, and say so.
        epilog: shown below the flags.
        retired: further flags without effect, as in RETIRED, of this script alone.
        ignored: flags of a sister script, which take any number of values and get a warning.
        repeatable: whether there is ``--config``.
    """

    description: str
    settings: S
    positionals: Sequence[str] = ()
    complete: Callable[[Mapping[str, Any]], S] | None = None
    epilog: str = ""
    retired: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeatable: bool = False

    def parse(self, argv: Sequence[str] | None = None) -> Call[S]:
        """Understands a command line; raises UserError for one that makes no sense, before anything is started."""
        words = list(sys.argv[1:] if argv is None else argv)
        parser = self.parser()
        parsed, unknown = parser.parse_known_args([_underscored(word) for word in words])
        given = vars(parsed)
        self._take_plain_words(given, unknown)
        if unknown:
            options = [option for action in parser._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
            raise UserError(f"unknown argument {unknown[0]}{f'; did you mean {close[0]}?' if close else ''}")
        self._answer_retired(given)
        config = given.pop("config", None)
        if config is not None:
            if "dump_path" not in given:
                raise UserError("--config repeats a run: say with --dump_path where the new one goes")
            given = {**given_in(config), **given}
        for leaf in leaves(self.settings):
            if leaf.about.required and not leaf.value and not given.get(leaf.name):
                raise UserError(f"the following arguments are required: {leaf.flags[0]}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        check(replaced(self.settings, given))  # each value by itself, so that defaults can be derived from them
        settings = replaced(self.settings, given) if self.complete is None else self.complete(given)
        adapt = getattr(settings, "adapted", None)
        if adapt is not None:
            check(settings)
            settings, said = adapt(given)
            note(*said)
        check(settings)
        reads = Reads()
        return Call(watched(settings, reads), given, _long_flags(words), command_line(), reads)

    def parser(self) -> argparse.ArgumentParser:
        places = " ".join(f"[{name.upper()}]" for name in self.positionals)
        parser = _Parser(
            usage=f"%(prog)s {places} [--flag value ...]",
            description=self.description,
            epilog=self.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        groups: dict[str, Any] = {}
        for leaf in leaves(self.settings):
            title = (type(leaf.owner).__doc__ or "").partition("\n")[0].rstrip(".")
            group = groups.get(title) or parser.add_argument_group(title)
            groups[title] = group
            _add_flag(group, leaf)
        if self.repeatable:
            parser.add_argument("--config", metavar="FILE", help="settings.json of a run to repeat; flags win over it")
        group = parser.add_argument_group("accepted and without effect (published command lines)")
        for name, replacement in {**RETIRED, **self.retired}.items():
            how: Any = {"action": "store_true"} if name in RETIRED_SWITCHES else {"nargs": "?", "const": ""}
            group.add_argument(f"--{name}", **how, help=replacement)
        for flag, why in self.ignored.items():
            group.add_argument(flag, nargs="*", dest=f"ignored {flag}", help=why)
        return parser

    def _take_plain_words(self, given: dict[str, Any], unknown: list[str]) -> None:
        by_name = {leaf.name: leaf for leaf in leaves(self.settings)}
        for name in self.positionals:
            if by_name[name].is_tuple:
                plain = [word for word in unknown if not word.startswith("-")]
                given[name] = [*plain, *given.get(name, ())]
                unknown[:] = [word for word in unknown if word.startswith("-")]
            elif unknown and not unknown[0].startswith("-") and not given.get(name):
                given[name] = unknown.pop(0)

    def _answer_retired(self, given: dict[str, Any]) -> None:
        for name, replacement in {**RETIRED, **self.retired}.items():
            if name in given:
                del given[name]
                _warn(f"--{name} has no effect any more: {replacement}")
        for flag, why in self.ignored.items():
            if f"ignored {flag}" in given:
                del given[f"ignored {flag}"]
                _warn(f"{flag} has no effect here: {why}")


def _warn(line: str) -> None:
    _say("warning", line)


def note(*lines: str) -> None:
    """Lines that the user should know of, from the main rank."""
    for line in lines:
        _say("note", line)


def _say(kind: str, line: str) -> None:
    if rank_in_environment() == 0:
        print(f"{kind}: {line}", file=sys.stderr)


def _add_flag(group: Any, leaf: Leaf) -> None:
    about = leaf.about
    options: dict[str, Any] = {"dest": leaf.name, "help": _help(leaf)}
    if about.switch:
        options |= {"action": "store_const", "const": True}
    else:
        read = READERS[leaf.item_type]
        if about.spellings:
            spellings = about.spellings
            read = lambda text: spellings.get(text, text)  # noqa: E731 - argparse calls it
        options["type"] = read
        options["metavar"] = leaf.name.upper()
        if about.choices:
            options["metavar"] = "{" + ",".join([*about.choices, *([about.like] if about.like else [])]) + "}"
        if leaf.is_tuple:
            options["nargs"] = leaf.length or ("*" if about.empty else "+")
    if about.more:
        options |= {"nargs": "+", "action": type("_More", (_FirstAndMore,), {"more": about.more})}
    group.add_argument(*leaf.flags, **options)
    for word in about.words:
        kept = type("_Word", (_Remember,), {"word": word})
        group.add_argument(
            word.flag, action=kept, nargs=word.nargs, metavar="VALUE", help=word.help, dest=f"word {word.flag}"
        )


def _help(leaf: Leaf) -> str:
    text = leaf.about.help.replace("%", "%%")
    if leaf.value is None or leaf.about.switch or leaf.value == "" or "default:" in text.lower():
        return text
    values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
    return f"{text} (default: {' '.join(str(value) for value in values)})"


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _long_flags(words: Sequence[str]) -> frozenset[str]:
    return frozenset(word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--"))


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def given_in(path: str) -> dict[str, Any]:
    """What the user of another run typed, out of its ``settings.json``, without where it went."""
    try:
        content = json.loads(Path(path).read_text())
        given = dict(content["given"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else error.strerror
        raise UserError(f"--config {path}: not the settings.json of a run ({reason})") from None
    for name in ("dump_path", "resume"):
        given.pop(name, None)
    return given
