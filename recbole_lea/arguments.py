"""The command line of our programs, and what RecBole is to read of it.

This module alone reads ``sys.argv``. RecBole reads ``--key=value`` alone; ``Parser`` turns what
was typed into that.
"""

import argparse
import ast
import contextlib
import os
import sys
from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from recbole_lea.keys import RULES, known_keys, nearest, recbole_folder

# add_argument("--config_files", **CONFIG_FILES)
CONFIG_FILES: dict[str, Any] = {
    "nargs": "+", "action": "extend", "default": [], "metavar": "FILE",
    "help": "YAML files, separated by blanks; later ones win",
}  # fmt: skip

_KEY = "key "  # before a key's name, in the parser's namespace

_given: list[str] | None = None


def given() -> list[str]:
    """What RecBole's ``Config`` reads: the process's own arguments, unless ``set_given`` was used.

    A notebook has none: its kernel's are not meant for RecBole.
    """
    own = [] if "ipykernel_launcher" in sys.argv[0] else sys.argv[1:]
    return list(own if _given is None else _given)


def set_given(arguments: Sequence[str]) -> None:
    """Let RecBole read these arguments in this process, such as those that a parser has left."""
    global _given
    _given = list(arguments)


def given_keys() -> dict[str, Any]:
    """Keys and values of the arguments that RecBole reads."""
    return read_arguments(given())[0]


class Parser(argparse.ArgumentParser):
    """A program's options, and with ``keys`` any key of the YAML files: --key=value, --key value.

    A mistake is one line, and exit code 2.
    """

    def __init__(self, prog: str, description: str, keys: bool = True) -> None:
        # a program's own option goes before a key of the same name
        super().__init__(prog, description=description, allow_abbrev=False,
                         conflict_handler="resolve")  # fmt: skip
        with contextlib.suppress(ModuleNotFoundError):  # --help works without RecBole
            for key in sorted(known_keys()) if keys else ():
                self.add_argument(
                    f"--{key}", dest=_KEY + key, action="append", default=SUPPRESS, help=SUPPRESS
                )

    def error(self, message: str) -> NoReturn:
        """End the program, with a line that says why."""
        self.exit(2, f"error: {message} (--help shows the options)\n")

    def read(self) -> argparse.Namespace:
        """The program's own options; from now on RecBole reads the keys, and nothing else."""
        options, rest = self.parse_known_args(given())
        if rest:
            recbole_folder()  # without it no key is known
            name = rest[0].partition("=")[0]
            known = [option.lstrip("-") for option in self._option_string_actions]
            hint = nearest(name.lstrip("-"), known) if name.startswith("-") else ""
            self.error(f"{name}: not an option, nor a key that anybody reads{hint}")
        values = {name: value for name, value in vars(options).items() if name.startswith(_KEY)}
        for name in values:
            delattr(options, name)
        set_given([f"--{name.removeprefix(_KEY)}={v}" for name in values for v in values[name]])
        try:
            given_keys()
        except ValueError as error:
            self.error(str(error))
        return options

    def refuse_unread(self, model: str) -> None:
        """End the program if a key was given that is none of this model's."""
        known = known_keys(model)
        for key in given_keys():
            if key not in known:
                self.error(f"--{key}: {model} reads no such key{nearest(key, known)}")


def path(text: str) -> str:
    """A path of the command line: ``type=path``."""
    return os.path.expanduser(text)


def existing(text: str) -> str:
    """A path of the command line at which there has to be something: ``type=existing``."""
    if not os.path.exists(path(text)):
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return path(text)


def read_arguments(arguments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Keys and values of ``--key=value``, and the arguments that are not of this form.

    Raises a ValueError if a key is given twice, with different values.
    """
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            others.append(argument)
        elif given.setdefault(key, value) != value:
            raise ValueError(f"`{key}` is given twice: --{key}={given[key]} and --{key}={value}")
    return literals(given), others


def literals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Texts as the literals they are; RecBole runs them through ``eval``."""
    return {k: _literal(k, v) if isinstance(v, str) else v for k, v in values.items()}


def _literal(key: str, text: str) -> Any:
    """A number, list, dict, truth value or None; a text if it is none, or if the key wants one."""
    as_in_yaml = {"true": True, "false": False, "~": None}
    if text.lower() in as_in_yaml:
        return as_in_yaml[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if value is not None and not isinstance(value, str | int | float | list | tuple | dict):
        return text
    check, _ = RULES.get(key, (None, None))
    return text if check and check(text) and not check(value) else value
