"""Turns what the argument parser rejects into a ConfigError: what was found, what was expected, a hint."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args, get_origin

import cyclopts
from cyclopts import CycloptsError

from starcoder.errors import ConfigError


def explain(error: CycloptsError) -> ConfigError:
    """The same mistake in our words."""
    help_command = " ".join(["starcoder", *(error.command_chain or ()), "--help"])
    see = f"`{help_command}` lists the options"
    match error:
        case cyclopts.UnknownOptionError(token=token):
            names = [name for argument in error.argument_collection for name in argument.names]
            if token.keyword and token.source not in ("", "cli"):
                key = token.keyword.strip("[]")
                keys = [name.removeprefix("--").replace("-", "_") for name in names]
                return ConfigError(f"unknown key {key!r} in {token.source!r}", _nearest(key, keys) or see)
            flag = token.keyword or token.value
            return ConfigError(f"unknown option {flag!r}", _nearest(flag, names) or see)
        case cyclopts.UnknownCommandError(unused_tokens=[str(verb), *_]):
            return _unknown_verb(verb, error.app)
        case cyclopts.CoercionError(token=token, target_type=kind) if token is not None:
            where = "" if token.source in ("", "cli") else f" in {token.source!r}"
            given = token.keyword or (error.argument.name if error.argument else "the argument")
            return ConfigError(
                f"{given.strip('[]')} is {token.value!r}{where}; expected {_expected(kind)}", see
            )
        case cyclopts.MissingArgumentError(argument=argument) if argument is not None:
            is_option = argument.name.startswith("-")
            return ConfigError(f"{argument.name} {'needs a value' if is_option else 'is missing'}", see)
        case cyclopts.RepeatArgumentError(token=token):
            return ConfigError(f"{token.keyword} is given more than once", "give it once")
        case cyclopts.UnusedCliTokensError(unused_tokens=[str(first), *_]):
            return ConfigError(
                f"unexpected argument {first!r}", "put quotes around text that has spaces in it"
            )
    error.verbose = False
    return ConfigError(str(error), see)


def _unknown_verb(verb: str, app: cyclopts.App | None) -> ConfigError:
    verbs = sorted(name for name in app or () if not name.startswith("-"))
    kind = "option" if verb.startswith("-") else "verb"
    return ConfigError(
        f"unknown {kind} {verb!r}", _nearest(verb, verbs) or f"the verbs are {', '.join(verbs)}"
    )


def _nearest(word: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _expected(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    choices = [choice for choice in get_args(kind) if isinstance(choice, str)]
    if get_origin(kind) is not None and choices:
        return f"one of {', '.join(choices)}"
    return words.get(kind, getattr(kind, "__name__", str(kind)))
