"""A problem: what to ask of a model, and how its answer becomes a program to run or a text to compare.

Rows of a data file become problems through a rule; what a row must have is checked here, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import Program
from starcoder.request import CompletionRequest

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question with one way to judge an answer.

    `check` turns whole source code into a program with its tests; without it an answer is compared with
    `reference`, the right answer as far as one is known.
    """

    id: str
    request: CompletionRequest
    check: Callable[[str], Program] | None = None
    reference: str = ""
    language: str = "python"
    group: str = ""  # scores are reported for each group too
    is_compared: bool = False  # with `reference`, besides being run
    rest: str = ""  # what follows in the file and is not shown to the model

    def code(self, completion: str) -> str:
        """The source that a completion makes, with what stands before and after it."""
        return self.request.prefix + completion + (self.request.suffix or self.rest)

    def program(self, completion: str) -> Program | None:
        """What the sandbox runs to judge a completion; None where answers are compared."""
        return None if self.check is None else self.check(self.code(completion))


def text(row: Row, name: str) -> str:
    """The text under `name`.

    Raises:
        ConfigError: there is none: the file is of another task.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ConfigError(
            f"a problem has {value!r:.40} for {name!r}; expected a text",
            f"is the file of this task? its fields are {', '.join(sorted(row))}",
        )
    return value


def texts(row: Row, name: str) -> tuple[str, ...]:
    """The list of texts under `name`.

    Raises:
        ConfigError: there is none.
    """
    value = row.get(name)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(
            f"a problem has {value!r:.40} for {name!r}; expected a list of texts", "is the file of this task?"
        )
    return tuple(value)


def values(row: Row, name: str) -> list[object]:
    """The list under `name`.

    Raises:
        ConfigError: there is none.
    """
    value = row.get(name)
    if not isinstance(value, list):
        raise ConfigError(
            f"a problem has {value!r:.40} for {name!r}; expected a list", "is the file of this task?"
        )
    return value
