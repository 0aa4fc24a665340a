"""One Python program's tests, in a process that the candidate cannot touch.

The tests see the candidate's public globals. Functions and objects among them are stand-ins that ask the
candidate's process (`candidate`); plain values come back as copies, read by code that trusts nothing. So a
candidate can answer wrongly, never decide: it shares no memory with the assertions, and its process comes
from one that never held tests or a nonce. Tests that hand it something which cannot be copied, such as a
function, run inside its process instead; there a determined candidate can forge, and the verdict says so.
"""

import builtins
import contextlib
import functools
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from opcode import opmap
from typing import Literal

from starcoder.evaluate.sandbox.candidate import message_of
from starcoder.evaluate.sandbox.isolation import WorkerEnded
from starcoder.evaluate.sandbox.verdicts import Kind
from starcoder.evaluate.sandbox.wire import Channel, decode, encode, update

_DETAIL = 300
_WALL_ERRORS = (1, 13, 30, 38, 101)  # EPERM, EACCES, EROFS, ENOSYS, ENETUNREACH


class NeedsInside(BaseException):
    """The tests pass values that cannot leave their process, so they must run beside the candidate."""


class CandidateGone(BaseException):
    """The candidate's process ended or stopped speaking. No `except Exception` of a test catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the trial ended, and the nonce if and only if the last test held.

    Beside the kinds of a verdict it can be `gone`, when the candidate's process ended, and `inside`, when the
    tests must be run in that process.
    """

    kind: Kind | Literal["gone", "inside"]
    detail: str = ""
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """How a program is to be tried: the nonce that proves the last test held, and where the tests run."""

    nonce: str
    inside: bool
    cpu_s: int


def judge(channel: Channel, task: Task, source: str, tests_text: str) -> Outcome:
    """Try the candidate at the other end of `channel`.

    Tests that leave nothing behind run in this process, others in a child of it.
    """
    ask = _Asker(channel)
    try:
        with contextlib.suppress(ConnectionError):  # the reply will tell that it is gone
            channel.send(source)
        offered = ask.reply()
        if task.inside:
            if ask("tests", tests_text, task.nonce) != task.nonce:
                raise CandidateGone
            return Outcome("passed", "tested inside its own process", task.nonce)
        tests = _read(tests_text)
        if not isinstance(offered, dict):
            raise CandidateGone
        used = {name: offer for name, offer in offered.items() if name in tests.names}
        if tests.leave_nothing and all(map(_is_the_candidates_own, used.values())):
            return _run(tests, used, task.nonce)
        return _in_a_child(lambda: _run(tests, offered, task.nonce), task.cpu_s)
    except BaseException as error:
        return _failure(error)


@dataclass(frozen=True, slots=True)
class _Tests:
    """Compiled tests, the global names and attributes they use, and whether running them has no effects."""

    code: types.CodeType
    names: frozenset[str]
    leave_nothing: bool


_EFFECTS = frozenset(opmap[name] for name in ("IMPORT_NAME", "STORE_ATTR", "DELETE_ATTR", "LOAD_BUILD_CLASS"))
_WITHOUT_EFFECTS = frozenset(
    (
        "abs", "all", "any", "bin", "bool", "bytearray", "bytes", "callable", "chr", "complex", "dict",
        "divmod", "enumerate", "filter", "float", "format", "frozenset", "hash", "hex", "int", "isinstance",
        "issubclass", "iter", "len", "list", "map", "max", "min", "next", "oct", "ord", "pow", "print",
        "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip",
    )
)  # fmt: skip
_OF_FRAMES = ("_", "f_", "tb_", "gi_", "cr_", "ag_")


@functools.lru_cache(maxsize=16)
def _read(text: str) -> _Tests:
    code = compile(text, "<tests>", "exec")
    every = list(_codes(code))
    names = frozenset(name for each in every for name in each.co_names)
    return _Tests(
        code,
        names,
        leave_nothing=not any(_EFFECTS.intersection(each.co_code[::2]) for each in every)
        and all(map(_has_no_effects, names)),
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """This code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _has_no_effects(name: str) -> bool:
    """Whether tests that use this name cannot change this process for the tests after them."""
    builtin = getattr(builtins, name, None)
    is_error = isinstance(builtin, type) and issubclass(builtin, BaseException)
    return not name.startswith(_OF_FRAMES) and (builtin is None or is_error or name in _WITHOUT_EFFECTS)


def _is_the_candidates_own(offer: object) -> bool:
    """Whether it is no module of this process's, nor a member of one, by a name of the candidate's choice."""
    return isinstance(offer, tuple) and offer[:1] == ("value",)


def _run(tests: _Tests, offered: dict[object, object], nonce: str) -> Outcome:
    try:
        exec(tests.code, {"__name__": "tests", **dict(_visible(offered, tests.names))})
    except BaseException as error:
        return _failure(error)
    return Outcome("passed", "", nonce)


def _in_a_child(run: Callable[[], Outcome], cpu_s: int) -> Outcome:
    """The outcome of a `run` that may change its process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        outcome = run()
        with open(writer, "w", encoding="ascii") as file:
            json.dump([outcome.kind, outcome.detail, outcome.nonce], file)
        raise WorkerEnded(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if text and status == 0:
        return Outcome(*json.loads(text))
    return obituary(status)


def obituary(status: int) -> Outcome:
    """What became of a process that ended before the tests did, given its status as `waitpid` tells it."""
    if not os.WIFSIGNALED(status):
        return Outcome("exit", f"ended with code {os.waitstatus_to_exitcode(status)} before the tests did")
    killer = signal.Signals(os.WTERMSIG(status))
    if killer is signal.SIGXCPU:
        return Outcome("timeout", "CPU time used up")
    return Outcome("error", f"ended by {killer.name} before the tests did")


def _failure(error: BaseException) -> Outcome:
    match error:
        case WorkerEnded():
            raise error
        case CandidateGone():
            return Outcome("gone")
        case NeedsInside():
            return Outcome("inside")
    return Outcome(*classify(error))


def classify(error: BaseException) -> tuple[Kind, str]:
    """The kind of failure that an exception is, and a line about it."""
    text = f"{type(error).__name__}: {message_of(error)}".rstrip(": ")
    if where := _line_of_tests(error):
        text = f"{text} ({where})"
    kind: Kind = "error"
    match error:
        case SyntaxError():
            kind = "syntax"
        case NameError():
            kind = "name"
        case AssertionError():
            kind = "assertion"
        case MemoryError():
            kind = "memory"
        case SystemExit():
            kind = "exit"
        case OSError() if error.errno in _WALL_ERRORS:
            kind = "isolation"
    return kind, " ".join(text.split())[:_DETAIL]


def _line_of_tests(error: BaseException) -> str:
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line} of the tests" if line else ""


class _Asker:
    """Puts questions to the candidate's process; its answers become values or exceptions."""

    def __init__(self, channel: Channel):
        self._channel = channel

    def __call__(self, verb: str, *details: object) -> object:
        try:
            self._channel.send([verb, *details])
        except ConnectionError:
            raise CandidateGone from None
        return self.reply()

    def call(self, number: int, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call the candidate's object `number`, and repeat here what it does to mutable arguments."""
        changes = self("call", number, _out(args), _out(kwargs))
        if not isinstance(changes, tuple):
            raise CandidateGone
        value, changed = changes
        for index, new in changed.items():
            update(args[index], new)
        return value

    def reply(self) -> object:
        """The candidate's next answer."""
        try:
            answer = self._channel.receive()
        except EOFError:
            raise CandidateGone from None
        try:
            match answer:
                case ["value", form]:
                    return decode(form, self.borrow)
                case ["raised", str(name), str(message), number]:
                    error = _exception(name, message, number)
                case _:
                    raise CandidateGone
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as wrong:
            raise TypeError(f"an answer that cannot be read: {wrong}") from None
        raise error

    def borrow(self, number: int) -> object:
        """A stand-in for the candidate's object `number`."""
        return Remote(self, number)


class Remote:
    """A stand-in for an object in the candidate's process.

    It can be called, iterated, indexed, measured, tested for truth and asked for attributes. Comparison and
    arithmetic are not passed on: an object must not tell the tests that it equals what they expect.
    """

    _ask: _Asker
    _number: int

    def __init__(self, ask: _Asker, number: int):
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._ask.call(self._number, args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self._number, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", self._number, name, _out(value))

    def __iter__(self) -> Iterator[object]:
        iterator = self._ask("iter", self._number)
        while True:
            match self._ask("next", _out(iterator)):
                case (True, item):
                    yield item
                case _:
                    return

    def __bool__(self) -> bool:
        return bool(self._ask("true", self._number))

    def __len__(self) -> int:
        length = self._ask("len", self._number)
        return length if type(length) is int else -1

    def __getitem__(self, key: object) -> object:
        return self._ask("item", self._number, _out(key))

    def __str__(self) -> str:
        return str(self._ask("text", self._number))


def _out(value: object) -> object:
    def lend(thing: object) -> object:
        if isinstance(thing, Remote):
            return {"t": "lent", "v": thing._number}
        raise NeedsInside

    return encode(value, lend)


def _visible(offered: dict[object, object], used: frozenset[str]) -> Iterator[tuple[str, object]]:
    """The candidate's globals as the tests may see them, given the names that the tests use.

    What has the name of a builtin stays hidden, or a candidate could give the tests its own `abs` or `all`;
    unless the tests use nothing else of the candidate's, so that this is what they are for.
    """
    is_builtin = {name: hasattr(builtins, str(name)) for name in offered}
    hides = any(
        name in used and not is_builtin[name] and isinstance(value, tuple) and value[:1] != ("module",)
        for name, value in offered.items()
    )
    for name, value in offered.items():
        if isinstance(name, str) and not (is_builtin[name] and hides):
            match value:
                case ("value", plain):
                    yield name, plain
                case ("module", str(module)):
                    if module.partition(".")[0] in _TRUSTED_MODULES:
                        with contextlib.suppress(Exception):
                            yield name, _import(module)
                case ("member", str(module), str(member)):
                    if module.partition(".")[0] in _TRUSTED_MODULES:
                        with contextlib.suppress(Exception):
                            yield name, getattr(_import(module), member)


_TRUSTED_MODULES = sys.stdlib_module_names | {"numpy"}


def _import(name: str) -> object:
    __import__(name)
    return sys.modules[name]


def _exception(name: str, message: str, number: object) -> BaseException:
    kind = getattr(builtins, name, Exception)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = Exception
    if issubclass(kind, OSError) and isinstance(number, int):
        return kind(number, message)
    if issubclass(kind, UnicodeError | BaseExceptionGroup):  # these want more than a message
        kind = ValueError
    return kind(message)
