"""One Python program's trial: the candidate in one process, its tests in another that it cannot touch.

The tests see the candidate's public globals. Functions and objects among them are stand-ins that ask the
candidate's process; plain values come back as copies, read by code that trusts nothing. So a candidate can
answer wrongly, never decide: it shares no memory with the assertions, and it exists before the tests and the
nonce are read. Tests that hand it something which cannot be copied, such as a function, run inside its
process instead (`NeedsInside`); there a determined candidate can forge, and the verdict says so.
"""

import builtins
import contextlib
import os
import signal
import socket
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starcoder.evaluate.sandbox.system import libc, ok
from starcoder.evaluate.sandbox.verdicts import Kind
from starcoder.evaluate.sandbox.wire import Channel, decode, encode, is_mutable, update

_DETAIL = 300
_SET_PDEATHSIG = 1
_WALL_ERRORS = (1, 13, 30, 38, 101)  # EPERM, EACCES, EROFS, ENOSYS, ENETUNREACH


class NeedsInside(BaseException):
    """The tests pass values that cannot leave their process, so they must run beside the candidate."""


class CandidateGone(BaseException):
    """The candidate's process ended or stopped speaking. No `except Exception` of a test catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the trial ended, and the nonce if and only if the last test held."""

    kind: Kind
    detail: str
    nonce: str = ""


def hold(source: str, tests_and_nonce: Callable[[], tuple[str, str]], *, inside: bool) -> Outcome | None:
    """Try `source`. Called in a process behind all walls; returns there the outcome, in a child of it None.

    The child is the candidate and must exit at once. `tests_and_nonce` is called after the child exists.

    Raises:
        NeedsInside: the trial must be held again, with `inside`.
    """
    ours, theirs = socket.socketpair()
    candidate = os.fork()
    if candidate == 0:
        ours.close()
        ok(libc().prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
        channel = theirs.fileno()
        os.closerange(3, channel)
        os.closerange(channel + 1, 128)
        _be_candidate(source, Channel(theirs))
        return None
    theirs.close()
    tests, nonce = tests_and_nonce()
    try:
        return _judge(Channel(ours), tests, nonce, inside=inside)
    except CandidateGone:
        return _post_mortem(candidate)


def _judge(channel: Channel, tests: str, nonce: str, *, inside: bool) -> Outcome:
    ask = _Asker(channel)
    try:
        offered = ask.reply()
        if inside:
            if ask("tests", tests, nonce) != nonce:
                raise CandidateGone
        else:
            code = compile(tests, "<tests>", "exec")
            exec(code, {"__name__": "tests", **dict(_visible(offered, frozenset(_names(code))))})
    except CandidateGone:
        raise
    except BaseException as error:
        if isinstance(error, NeedsInside):
            raise
        return Outcome(*classify(error))
    return Outcome("passed", "tested inside its own process" if inside else "", nonce)


def classify(error: BaseException) -> tuple[Kind, str]:
    """The kind of failure that an exception is, and a line about it."""
    text = f"{type(error).__name__}: {_text(error)}".rstrip(": ")
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


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # a candidate's own __str__
        return ""


def _line_of_tests(error: BaseException) -> str:
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line} of the tests" if line else ""


def _post_mortem(candidate: int) -> Outcome:
    """Why the candidate's process is gone."""
    os.kill(candidate, signal.SIGKILL)
    _, status = os.waitpid(candidate, 0)
    if not os.WIFSIGNALED(status):
        return Outcome("exit", f"ended with code {os.waitstatus_to_exitcode(status)} before the tests did")
    killer = signal.Signals(os.WTERMSIG(status))
    if killer is signal.SIGXCPU:
        return Outcome("timeout", "CPU time used up")
    return Outcome("error", f"ended by {killer.name} before the tests did")


# The tests' side


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


def _visible(offered: object, used: frozenset[str]) -> Iterator[tuple[str, object]]:
    """The candidate's globals as the tests may see them, given the names that the tests use.

    What has the name of a builtin stays hidden, or a candidate could give the tests its own `abs` or `all`;
    unless the tests use nothing else of the candidate's, so that this is what they are for.
    """
    if not isinstance(offered, dict):
        raise CandidateGone
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


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names and attributes that code and the functions in it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


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


# The candidate's side


def _be_candidate(source: str, channel: Channel) -> None:
    """Run the candidate's text, then answer questions about what it defined until the tests are done."""
    lent: list[object] = []
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    answers = _Answers(module, lent)
    try:
        exec(compile(source, "<candidate>", "exec"), module.__dict__)
        reply = ["value", encode(dict(answers.offers()), answers.lend)]
    except BaseException as error:
        reply = _raised(error)
    while True:
        try:
            channel.send(reply)
            question = channel.receive()
        except (EOFError, ConnectionError):
            return
        assert isinstance(question, list), "the tests' side sends lists"
        try:
            reply = ["value", encode(answers.to(question), answers.lend)]
        except BaseException as error:
            reply = _raised(error)


class _Answers:
    """What the candidate's process says when the tests ask."""

    def __init__(self, module: types.ModuleType, lent: list[object]):
        self._module, self._lent = module, lent

    def offers(self) -> Iterator[tuple[str, tuple[object, ...]]]:
        """The candidate's globals: values, and where the modules and members it imported come from."""
        for name, value in list(self._module.__dict__.items()):
            home = getattr(value, "__module__", None)
            if name.startswith("__"):
                continue
            if isinstance(value, types.ModuleType):
                yield name, ("module", value.__name__)
            elif isinstance(home, str) and home != "candidate" and hasattr(value, "__name__"):
                yield name, ("member", home, value.__name__)
            else:
                yield name, ("value", value)

    def lend(self, thing: object) -> object:
        """The form of an object that stays here."""
        self._lent.append(thing)
        return {"t": "lent", "v": len(self._lent) - 1}

    def to(self, question: list[object]) -> object:
        """The answer to one question."""
        match question:
            case ["call", int(number), args, kwargs]:
                return self._call(self._lent[number], args, self._in(kwargs))
            case ["get", int(number), str(name)]:
                return getattr(self._lent[number], name)
            case ["set", int(number), str(name), value]:
                setattr(self._lent[number], name, self._in(value))
                return None
            case ["iter", int(number)]:
                return _Kept(iter(self._lent[number]))  # type: ignore[call-overload]
            case ["next", iterator]:
                kept = self._in(iterator)
                assert isinstance(kept, _Kept)
                return next(((True, item) for item in kept.iterator), (False,))
            case ["true", int(number)]:
                return bool(self._lent[number])
            case ["len", int(number)]:
                return len(self._lent[number])  # type: ignore[arg-type]
            case ["item", int(number), key]:
                return self._lent[number][self._in(key)]  # type: ignore[index]
            case ["text", int(number)]:
                return str(self._lent[number])
            case ["tests", str(tests), str(nonce)]:
                exec(compile(tests, "<tests>", "exec"), self._module.__dict__)
                return nonce
        raise AssertionError(question)

    def _call(self, function: object, form: object, kwargs: object) -> tuple[object, dict[int, object]]:
        """The function's answer, and the mutable arguments that differ from what was sent."""
        args = self._in(form)
        assert isinstance(form, dict) and isinstance(args, tuple), "arguments travel as a tuple"
        assert isinstance(kwargs, dict) and callable(function)
        value = function(*args, **kwargs)
        changed = {
            index: arg
            for index, (arg, sent) in enumerate(zip(args, form["v"], strict=True))
            if is_mutable(arg) and encode(arg, self.lend) != sent
        }
        return value, changed

    def _in(self, form: object) -> object:
        return decode(form, lambda number: self._lent[number])


@dataclass(frozen=True, slots=True)
class _Kept:
    """An iterator on loan."""

    iterator: Iterator[object]


def _raised(error: BaseException) -> list[object]:
    """The answer that says `error` happened, by the nearest exception type that Python itself has."""
    kind = next(cls for cls in type(error).__mro__ if cls.__module__ == "builtins")
    text, number = _text(error), None
    if isinstance(error, OSError) and isinstance(error.errno, int):
        number = error.errno
        text = f"{error.strerror}" if error.filename is None else f"{error.strerror}: {error.filename!r}"
    return ["raised", kind.__name__, text[:_DETAIL], number]
