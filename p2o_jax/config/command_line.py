"""Command lines: a command declares its flags once and gets parsing, `--help`, `--help-config` and
error lines.

Besides its flags a command takes settings, as `--config.section.key=value`. All problems of a
command line are reported together, in one ConfigError.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from p2o_jax.config import names, reference
from p2o_jax.config.errors import ConfigError
from p2o_jax.config.ranges import Range
from p2o_jax.config.values import BOOLEANS

_SETTINGS = """\
settings:
  Settings are given as --config.section.key=value, for example --config.optim.lr=1e-5.
  --help-config lists them all, --help-config SECTION those of a section."""


@dataclass(frozen=True)
class Flag:
    """A flag of a command: `--name=VALUE` or `--name VALUE`.

    Attributes:
        help: what it means, for `--help`.
        default: its value if it is not given.
        required: it must be given.
        kind: of its value: str, int, float or bool; a bool is true without a value, too.
        within: the range of a number.
        choices: the values that it may have; empty: any.
        several: its value is a comma-separated list.
        metavar: what stands for the value in `--help`; empty: the name in capitals.
    """

    name: str
    help: str
    default: Any = ""
    required: bool = False
    kind: type = str
    within: Range | None = None
    choices: tuple[str, ...] = ()
    several: bool = False
    metavar: str = ""

    def read(self, text: str, label: str) -> Any:
        """The value that the text stands for; a list if the flag takes several.

        Raises:
            ConfigError: with a line for every part that is none, beginning with the label.
        """
        values, problems = [], []
        for part in text.split(",") if self.several else [text]:
            try:
                values.append(self._read_one(part))
            except ValueError as e:
                problems.append(f"{label}{part}{e}")
        if problems:
            raise ConfigError(*problems)
        return values if self.several else values[0]

    def _read_one(self, text: str) -> Any:
        if self.choices and text not in self.choices:
            raise ValueError(f": expected one of {', '.join(self.choices)}")
        if self.kind is bool:
            if text.lower() not in BOOLEANS:
                raise ValueError(": expected true or false")
            return BOOLEANS[text.lower()]
        if self.kind is str:
            return text
        try:
            value = self.kind(text)
        except ValueError:
            rule = f" must be {'an integer' if self.kind is int else 'a number'}"
            raise ValueError(rule + (f", {self.within}" if self.within else "")) from None
        if self.within and (problem := self.within.problem(value)):
            raise ValueError(f" {problem}")
        return value


@dataclass(frozen=True)
class Switch:
    """A flag of a command that takes no value: True where it is given, else False."""

    name: str
    help: str
    default: bool = False


class CommandLine:
    """The command line of a command.

    Args:
        program: what follows `python -m`.
        description: what the command does, for `--help`; usually its module's docstring.
        flags: its flags.
        positional: the arguments without a name; None: there are none. With `several` there may be
            more than one.
        settings: whether the command takes settings, as `--config.section.key=value`.
    """

    def __init__(
        self,
        program: str,
        description: str | None,
        *flags: Flag | Switch,
        positional: Flag | None = None,
        settings: bool = True,
    ):
        self.program, self.description = program, (description or "").strip()
        self.flags = {flag.name: flag for flag in flags}
        self.positional, self.settings = positional, settings

    def parse(
        self,
        argv: Sequence[str],
        check: Callable[[dict[str, Any]], Iterable[str]] = lambda values: (),
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """({name: value} of all flags, [(key, text)] of the settings).

        Args:
            check: rules between flags: a line for each that the values break. Flags that are
                missing or wrong have their default there.

        Raises:
            ConfigError: with a line for every flag that is unknown, missing or has a wrong value,
                and for every broken rule.
            SystemExit: after `--help` and `--help-config`.
        """
        overrides, rest, problems = self._split(argv)
        parser = self._parser()
        namespace, unknown = parser.parse_known_args(rest)
        given = vars(namespace)
        if given["help"]:
            _show(parser.format_help())
        if (section := given.get("help-config")) is not None:
            _show(reference.help_text(section))
        values = {flag.name: flag.default for flag in self.flags.values()}
        wrong = list(self._read(given, values, unknown))
        lines = [*map(self._unknown, unknown), *problems, *wrong, *check(values)]
        if lines:
            raise ConfigError(*lines)
        return values, overrides

    def help(self) -> str:
        """The text of `--help`."""
        return self._parser().format_help()

    def _split(self, argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
        """The settings, the other arguments with `--flag value` joined to `--flag=value`, and a
        line for every flag or setting with a value too few or too many.
        """
        overrides, rest, problems = [], [], []
        arguments = list(argv)
        while arguments:
            argument = arguments.pop(0)
            head, has_value, value = argument.partition("=")
            name = head.removeprefix("--")
            flag = self.flags.get(name) if head.startswith("--") else None
            is_setting = head.startswith("--config.")
            if isinstance(flag, Switch) and has_value:
                problems.append(f"{argument}: takes no value")
                continue
            if not (isinstance(flag, Flag) or is_setting):
                rest.append(argument)
                continue
            if not has_value:
                following = arguments[0] if arguments else "--"
                if (
                    isinstance(flag, Flag)
                    and flag.kind is bool
                    and following.lower() not in BOOLEANS
                ):
                    value = "true"
                elif following.startswith("--"):
                    problems.append(f"{head}: needs a value")
                    continue
                else:
                    value = arguments.pop(0)
            if is_setting and not self.settings:
                problems.append(f"{head}: there are no settings here")
            elif is_setting:
                overrides.append((name.removeprefix("config."), value))
            else:
                rest.append(f"{head}={value}")
        return overrides, rest, problems

    def _read(
        self, given: dict[str, Any], values: dict[str, Any], unknown: list[str]
    ) -> Iterator[str]:
        """Puts the flags' values into `values`; yields a line for each that is wrong or missing."""
        if flag := self.positional:
            words = given[flag.name]
            unknown += [word for word in words if word.startswith("--")]
            words = [word for word in words if not word.startswith("--")]
            unknown += [] if flag.several else words[1:]
            if not words:
                yield f"{flag.metavar}: required"
            elif flag.several:
                values[flag.name] = words
            else:
                yield from _try_read(flag, words[0], "", values)
        for name, flag in self.flags.items():
            text = given[name]
            if isinstance(flag, Switch):
                values[name] = text
            elif text is not None:
                yield from _try_read(flag, text, f"--{name}=", values)
            elif flag.required:
                yield f"--{name}: required"

    def _unknown(self, argument: str) -> str:
        head = argument.partition("=")[0]
        close = difflib.get_close_matches(head.removeprefix("--"), [*self.flags, "help"], n=1)
        meant = names.same_setting(head.removeprefix("--")) if self.settings else ""
        meant = close[0] if close else f"config.{meant}" if meant else ""
        return f"{head}: unknown flag{f' (did you mean --{meant}?)' if meant else ''}"

    def _parser(self) -> argparse.ArgumentParser:
        usage = [f"python -m {self.program}"]
        if self.positional:
            dots = " ..." if self.positional.several else ""
            usage.append(self.positional.metavar + dots)
        usage += [
            f"--{flag.name} {_metavar(flag)}"
            for flag in self.flags.values()
            if isinstance(flag, Flag) and flag.required
        ]
        usage += ["[flags]"] + (["[--config.section.key=value ...]"] if self.settings else [])
        parser = _Parser(
            usage=" ".join(usage),
            description=self.description,
            epilog=_SETTINGS if self.settings else None,
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
        )
        if flag := self.positional:
            group = parser.add_argument_group("arguments")
            group.add_argument(flag.name, nargs="*", metavar=flag.metavar, help=_help(flag))
        group = parser.add_argument_group("flags")
        for flag in self.flags.values():
            if isinstance(flag, Switch):
                group.add_argument(
                    f"--{flag.name}", dest=flag.name, action="store_true", help=_help(flag)
                )
            else:
                group.add_argument(
                    f"--{flag.name}", dest=flag.name, metavar=_metavar(flag), help=_help(flag)
                )
        group.add_argument("-h", "--help", action="store_true", help="Show this text and exit")
        if self.settings:
            group.add_argument(
                "--help-config",
                dest="help-config",
                nargs="?",
                const="",
                metavar="SECTION",
                help="Show the settings (of a section), with types, defaults and ranges, and exit",
            )
        return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, width=100)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _try_read(flag: Flag, text: str, label: str, values: dict[str, Any]) -> Iterator[str]:
    try:
        values[flag.name] = flag.read(text, label)
    except ConfigError as e:
        yield from e.problems


def _metavar(flag: Flag) -> str:
    choices = ("true", "false") if flag.kind is bool else flag.choices
    return flag.metavar or "|".join(choices) or flag.name.upper()


def _help(flag: Flag | Switch) -> str:
    """The flag's help text with what it must be and its default, escaped for argparse."""
    notes = []
    if isinstance(flag, Flag):
        notes += ["required"] if flag.required else []
        notes += [str(flag.within)] if flag.within else []
        default = str(flag.default).lower() if flag.kind is bool else flag.default
        if flag.several and not isinstance(default, str):
            default = ",".join(map(str, default))
        notes += [f"default: {default}"] if default not in ("", None) else []
    text = flag.help + (f" ({'; '.join(notes)})" if notes else "")
    return text.replace("%", "%%")


def _show(text: str) -> NoReturn:
    """Prints the text and ends the program; a pipe that nobody reads is no error."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def model_or_run(flags: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with flags that name a model or a run."""
    if bool(flags["model"]) == bool(flags["workdir"]):
        yield "--model or --workdir: one of them is needed, and not both"
    if (flags["step"] or flags["template"] == "best") and not flags["workdir"]:
        yield "--step and --template=best need --workdir"
