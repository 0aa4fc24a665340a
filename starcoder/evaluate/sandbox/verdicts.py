"""The values that go into the sandbox and come out: programs, limits, verdicts, the isolation reached."""

from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal[
    "passed",  # the last test ran and held
    "syntax",  # the candidate does not parse
    "name",  # it uses a name that is not there
    "assertion",  # a test said no
    "error",  # any other exception, or death by a signal
    "exit",  # the process ended before the last test did
    "timeout",  # wall clock or CPU time used up
    "memory",  # more memory than allowed
    "isolation",  # it ran into a wall of the sandbox and fell over it
    "unavailable",  # its language has no tool-chain here: neither passed nor failed
]

KINDS: tuple[Kind, ...] = (
    "passed",
    "syntax",
    "name",
    "assertion",
    "error",
    "exit",
    "timeout",
    "memory",
    "isolation",
    "unavailable",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use; all its processes together for time and memory, each for the rest."""

    timeout_s: float = 5.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 32 << 20
    processes: int = 32
    output_bytes: int = 64 << 10

    def at_least(self, needs: "Limits | None") -> "Limits":
        """These limits, wider where `needs` are."""
        if needs is None:
            return self
        return Limits(**{name: max(value, getattr(needs, name)) for name, value in asdict(self).items()})


@dataclass(frozen=True, slots=True)
class Program:
    """A candidate and its tests, both source text of `language`.

    The candidate passes when the last statement of `tests` is reached without an exception. In Python the
    tests run in a process of their own and see the candidate's public globals; in other languages both are
    one file, and a line `PASSED_MARK` (see `languages`) in `tests` says where success is reported: without
    one it is the end of the file, or of `main` where the language has one.
    """

    source: str
    tests: str
    language: str = "python"
    needs: Limits | None = None  # it gets no less than this: its known solution would fail otherwise


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one program ended. `detail` is a line for people: the exception, the signal, the limit."""

    kind: Kind
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every test held."""
        return self.kind == "passed"


@dataclass(frozen=True, slots=True)
class Isolation:
    """The walls that stand on this machine, and those that do not, by name; part of every result."""

    reached: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether programs reach neither the network nor the user's files: what `Sandbox` insists on."""
        return {"network", "files"} <= set(self.reached)
