"""The command line: what RecBole is to read of it. This module alone reads ``sys.argv``."""

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_lea.keys import RULES

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


def given_keys(arguments: Iterable[str]) -> list[str]:
    """Keys of arguments that a program leaves to RecBole; a ValueError unless ``--key=value``."""
    given, others = read_arguments(arguments)
    if others:
        raise ValueError(f"{others[0]}: not an option; keys are given as --key=value")
    return list(given)


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
