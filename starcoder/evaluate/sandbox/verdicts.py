"""The values that go into the sandbox and come out: programs, limits, verdicts, the isolation reached."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

Kind = Literal[
    "passed",  # the last test ran and held, and nothing but return values came from the candidate
    "unconfirmed",  # the tests held, but had to run inside the candidate's process, which could forge it
    "syntax",  # the candidate does not parse
    "name",  # it uses a name that is not defined
    "assertion",  # a test said no
    "error",  # any other exception, or death by a signal
    "exit",  # the process ended before the last test did
    "timeout",  # out of time
    "memory",  # more memory than allowed
    "isolation",  # the sandbox refused what it tried
    "unavailable",  # its language has no tool-chain here: neither passed nor failed
]
KINDS: tuple[Kind, ...] = get_args(Kind)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """Inputs of a function and what it must return, compared in the test runner by `oracle.agree`.

    `inputs` (a list of lists of arguments) and `expected` (a list) are JSON in the forms of `schema`, see
    `plain`. Without `expected` it is what `reference`, a trusted text that defines the entry point, returns.
    """

    entry_point: str
    inputs: str
    reference: str = ""
    expected: str = ""
    rule: str = "equal"
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """A candidate and how it is tested.

    In Python the candidate passes when the last statement of `tests` is reached without an exception, or
    when every one of its `cases` agrees. The tests run in a process of their own, where `entry_points` are
    stand-ins for what the candidate calls so: by default the global names that `tests` read and neither they
    nor Python define. `setup` is trusted text (the prompt, a known solution) that runs before `tests` if they
    use other names; it needs `entry_points`.

    In other languages both texts are one file, and a line `PASSED_MARK` (see `languages`) in `tests` says
    where success is reported: without one it is the end of the file, or of `main`.
    """

    source: str
    tests: str = ""
    language: str = "python"
    needs: Limits | None = None  # it gets no less than this: its known solution would fail otherwise
    entry_points: tuple[str, ...] = ()
    setup: str = ""
    cases: Cases | None = None

    def __post_init__(self) -> None:
        assert self.entry_points or not self.setup, "a setup says nothing of what the candidate must define"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one program ended. `detail` is a line for people: the exception, the signal, the limit.

    Of a failed test the input, what was expected and what was found are kept as texts, where they are known.
    """

    kind: Kind
    detail: str = ""
    seconds: float = 0.0
    input: str = ""
    expected: str = ""
    found: str = ""

    @property
    def passed(self) -> bool:
        """Whether every test held, and the candidate could not have forged that."""
        return self.kind == "passed"

    @property
    def held(self) -> bool:
        """Whether every test held, perhaps in the candidate's own process, where it could be forged."""
        return self.kind in ("passed", "unconfirmed")


@dataclass(frozen=True, slots=True)
class Isolation:
    """The layers of isolation on this machine and those that it lacks, by name; part of every result."""

    reached: tuple[str, ...]
    missing: tuple[str, ...]

    def by_guarantee(self) -> dict[str, tuple[str, ...]]:
        """Every guarantee with the layers that give it; none where it cannot be given."""
        layers = set(self.reached)
        return {
            name: tuple(layer for layer in LAYERS if any(layer in way for way in ways if way <= layers))
            for name, ways in GUARANTEES.items()
        }

    @property
    def lacks(self) -> tuple[str, ...]:
        """The guarantees that cannot be given: `Sandbox` then refuses to start."""
        return tuple(name for name, layers in self.by_guarantee().items() if not layers)


LAYERS = (
    "user-namespace", "pid-namespace", "mount-namespace", "net-namespace", "ipc-namespace", "read-only-root",
    "private-tmp", "landlock", "signal-scope", "seccomp", "no-signals", "no-capabilities", "rlimits",
    "process-count", "usage-watch", "container",
)  # fmt: skip
"""Layers of isolation. `signal-scope` is Landlock's, from interface 6; `no-signals` the filter's instead."""

GUARANTEES: dict[str, tuple[frozenset[str], ...]] = {
    name: tuple(map(frozenset, ways))
    for name, ways in {
        "network": [{"net-namespace"}, {"seccomp"}, {"container"}],
        "files": [{"read-only-root"}, {"landlock"}, {"container"}],
        "signals": [{"pid-namespace"}, {"signal-scope"}, {"no-signals"}, {"container"}],
        "memory": [{"usage-watch", "seccomp", "rlimits"}, {"container"}],
        "disk": [{"private-tmp"}, {"container"}],
        "cpu-time": [{"usage-watch", "rlimits"}, {"container"}],
        "processes": [{"process-count", "rlimits"}, {"container"}],
    }.items()
}
"""What `Sandbox` promises of every program, and the sets of layers of which one suffices for it."""
