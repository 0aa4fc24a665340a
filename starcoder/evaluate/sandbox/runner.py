"""The test runner: runs one Python program's tests in a process that no candidate's code ever enters.

The names that the tests may ask the candidate for are the task's entry points; everything else that they
use is trusted (their own text, the task's setup, Python). A call sends copies of the arguments; what comes
back is read by the schema as data. Tests that need more than data are run again inside the candidate's
process (`together`), which proves less and has a verdict of its own, `unconfirmed`.
"""

import ast
import builtins
import contextlib
import copy
import functools
import json
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from opcode import opmap
from typing import Any, Literal, NoReturn

from starcoder.evaluate.oracle import agree
from starcoder.evaluate.sandbox.candidate import message_of
from starcoder.evaluate.sandbox.isolation import WorkerEnded
from starcoder.evaluate.sandbox.schema import Channel, Malformed, Reader, encode
from starcoder.evaluate.sandbox.verdicts import Cases, Kind

_DETAIL = 300
_MAX_SHOWN = 1000  # characters of a failing input, of what was expected, of what was found
_LAYER_ERRORS = (1, 13, 30, 38, 101)  # EPERM, EACCES, EROFS, ENOSYS, ENETUNREACH
_REFERENCE_CPU_S = 1800
_BATCH, _LONG_S = 16, 0.2


class NeedsTogether(BaseException):
    """The tests use something that is not data. No `except Exception` of a test catches it."""


class CandidateGone(BaseException):
    """The candidate's process ended or stopped speaking. No `except Exception` of a test catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended, and the nonce if and only if the last test held.

    Besides the kinds of a verdict it can be `gone`, when the candidate's process ended, and `together`, when
    the tests must be run in that process. `is_doubtful`: the candidate changed an argument that the tests
    could look at again, so in one process the tests might have seen something else.
    """

    kind: Kind | Literal["gone", "together"]
    detail: str = ""
    nonce: str = ""
    is_doubtful: bool = False
    shown: dict[str, str] = field(default_factory=dict)  # input, expected, found of a failure


@dataclass(frozen=True, slots=True)
class Order:
    """How a program is to be tried: the nonce that proves the last test held, and where the tests run."""

    nonce: str
    together: bool
    cpu_s: int


def judge(
    channel: Channel, order: Order, source: str, task_text: str, report: Callable[[dict[str, float]], None]
) -> Outcome:
    """Try the candidate at the other end of `channel`.

    Tests that leave nothing behind run in this process, others in a child of it. `report` is called when the
    task's reference begins to compute (`{}`), and with `reference_s` of CPU time when it has ended.
    """
    ask = _Asker(channel)
    try:
        task = _read(task_text)
        ask.load(source, task.classes)
        if order.together:
            return _run_together(ask, task, order)
        if task.code is not None and task.leaves_nothing:
            return _run(ask, task, order.nonce)
        if task.cases is not None:
            return _in_a_child(lambda: _run_cases(ask, task, order.nonce, report), _REFERENCE_CPU_S)
        return _in_a_child(lambda: _run(ask, task, order.nonce), order.cpu_s)
    except BaseException as error:
        return _failure(error, ask)


@dataclass(frozen=True, slots=True)
class _Task:
    """A program's tests, read: what they are, and which of their names the candidate is asked for."""

    text: str
    code: types.CodeType | None
    setup: types.CodeType | None
    modules: tuple[str, ...]
    entry_points: tuple[str, ...]
    classes: dict[str, dict[str, bool]]
    leaves_nothing: bool
    cases: Cases | None


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
def _read(text: str) -> _Task:
    fields = json.loads(text)
    if fields.get("cases") is not None:
        return _Task("", None, None, (), (), {}, leaves_nothing=False, cases=Cases(**fields["cases"]))
    code = compile(fields["tests"], "<tests>", "exec")
    every = list(_codes(code))
    names = frozenset(name for each in every for name in each.co_names)
    setup, modules = fields["setup"], tuple(fields["modules"])
    is_free = not any(_EFFECTS.intersection(each.co_code[::2]) for each in every)
    return _Task(
        fields["tests"],
        code,
        compile(setup, "<setup>", "exec") if setup else None,
        modules,
        tuple(name for name in fields["entry_points"] if name in names),
        fields["classes"],
        leaves_nothing=is_free and not setup and not modules and all(map(_has_no_effects, names)),
        cases=None,
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


def _run(ask: "_Asker", task: _Task, nonce: str) -> Outcome:
    """Run the text of tests, with stand-ins for the entry points."""
    assert task.code is not None, "the task has a text of tests"
    names: dict[str, object] = {"__name__": "tests"}
    try:
        for name in task.modules:
            with contextlib.suppress(ImportError):
                names[name] = __import__(name)
        if task.setup is not None:
            exec(task.setup, names)
        for name in task.entry_points:
            names.pop(name, None)
            ask.put_entry_point(name, names)
        exec(task.code, names)
    except BaseException as error:
        return _failure(error, ask, task.text)
    return ask.checked(Outcome("passed", "", nonce))


def _run_cases(ask: "_Asker", task: _Task, nonce: str, report: Callable[[dict[str, float]], None]) -> Outcome:
    """Call the entry point on every input and compare with what the reference returns."""
    assert task.cases is not None, "the task has cases"
    cases = task.cases
    try:
        for arguments, wanted in _expected(cases, report):
            found = ask.call(cases.entry_point, tuple(arguments), {})
            try:
                is_right = agree(found, wanted, arguments, rule=cases.rule, tolerance=cases.tolerance)
            except (Exception, NeedsTogether):  # it has not even the type that the rule compares
                is_right = False
            if not is_right:
                shown = {"input": _shown(arguments), "expected": _shown(wanted), "found": _shown(found)}
                detail = f"{cases.entry_point}(*{_shown(arguments, 80)}) returned {_shown(found, 80)}"
                return Outcome("assertion", detail, shown=shown)
    except NeedsTogether:
        return Outcome("error", "returned an object that is not data")
    except BaseException as error:
        return _failure(error, ask)
    return Outcome("passed", "", nonce)


def _expected(cases: Cases, report: Callable[[dict[str, float]], None]) -> Iterator[tuple[list[Any], object]]:
    """Every input with what is expected.

    A reference computes the first alone, because most failures show there, and then some at a time, because
    all its answers together can be gigabytes.
    """
    inputs = Reader(_no_objects).read(json.loads(cases.inputs))
    assert isinstance(inputs, list), "inputs are a list of lists of arguments"
    if cases.expected:
        stored = Reader(_no_objects).read(json.loads(cases.expected))
        assert isinstance(stored, list), "one expected value for each input"
        yield from zip(inputs, stored, strict=True)
        return
    names: dict[str, Any] = {"__name__": "reference"}
    exec(compile(cases.reference, "<reference>", "exec"), names)
    start, size = 0, 1
    while start < len(inputs):
        batch = inputs[start : start + size]
        report({})
        began = time.process_time()
        expected = [names[cases.entry_point](*copy.deepcopy(arguments)) for arguments in batch]
        for value in expected:  # sending its answer is a part of the candidate's time, so of the reference's
            json.dumps(encode(value, _no_objects))
        spent_s = time.process_time() - began
        report({"reference_s": spent_s})
        yield from zip(batch, expected, strict=True)
        start, size = start + size, 1 if spent_s > _LONG_S else _BATCH


def _no_objects(number: object, is_iterator: bool) -> NoReturn:
    raise Malformed("the task's own data has no objects")


def _run_together(ask: "_Asker", task: _Task, order: Order) -> Outcome:
    """Run the tests inside the candidate's process. Whoever answers with the nonce can have forged it."""
    reply = ask.request(["together", task.text, order.nonce])
    match reply:
        case ["nonce", order.nonce]:
            return Outcome("unconfirmed", "the tests had to run inside the candidate's process", order.nonce)
        case ["raised", str(name), str(message), number]:
            raise _exception(name, message, number)
    raise Malformed("neither a nonce nor an error")


def _in_a_child(run: Callable[[], Outcome], cpu_s: int | None) -> Outcome:
    """The outcome of a `run` that may change its process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if cpu_s is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        outcome = run()
        with open(writer, "w", encoding="ascii") as file:
            json.dump(asdict(outcome), file)
        raise WorkerEnded(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if text and status == 0:
        return Outcome(**json.loads(text))
    return exit_reason(status)


def exit_reason(status: int) -> Outcome:
    """Why a process ended before the tests did, given its status as `waitpid` returns it."""
    if not os.WIFSIGNALED(status):
        return Outcome("exit", f"ended with code {os.waitstatus_to_exitcode(status)} before the tests did")
    killer = signal.Signals(os.WTERMSIG(status))
    if killer is signal.SIGXCPU:
        return Outcome("timeout", "CPU time used up")
    return Outcome("error", f"ended by {killer.name} before the tests did")


def _failure(error: BaseException, ask: "_Asker", tests: str = "") -> Outcome:
    match error:
        case WorkerEnded():
            raise error
        case CandidateGone():
            return Outcome("gone")
        case NeedsTogether():
            return Outcome("together")
        case Malformed():
            return Outcome("error", f"the candidate's process sent what is not a value: {error}"[:_DETAIL])
    shown = ask.last_call() | _expected_by(error, tests) if isinstance(error, AssertionError) else {}
    return ask.checked(Outcome(*classify(error), shown=shown))


def classify(error: BaseException) -> tuple[Kind, str]:
    """The kind of failure that an exception is, and a line about it."""
    text = f"{type(error).__name__}: {message_of(error)}".rstrip(": ")
    if line := _line_of_tests(error)[0]:
        text = f"{text} (line {line} of the tests)"
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
        case OSError(errno=12):
            kind = "memory"
        case SystemExit():
            kind = "exit"
        case OSError() if error.errno in _LAYER_ERRORS:
            kind = "isolation"
    return kind, " ".join(text.split())[:_DETAIL]


def _line_of_tests(error: BaseException) -> tuple[int, types.FrameType | None]:
    """The last line of the tests in an error's trace, and the frame that ran it."""
    trace, line, frame = error.__traceback__, 0, None
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line, frame = trace.tb_lineno, trace.tb_frame
        trace = trace.tb_next
    return line, frame


def _expected_by(error: BaseException, tests: str) -> dict[str, str]:
    """What the right side of a failed `assert a == b` was, where evaluating it again calls nothing."""
    line, frame = _line_of_tests(error)
    with contextlib.suppress(Exception):
        for node in ast.walk(ast.parse(tests)):
            if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or 0) and frame:
                right = node.test.comparators[0] if isinstance(node.test, ast.Compare) else None
                if right and not any(isinstance(part, ast.Call) for part in ast.walk(right)):
                    code = compile(ast.Expression(right), "<tests>", "eval")
                    return {"expected": _shown(eval(code, frame.f_globals, frame.f_locals))}
    return {}


def _shown(value: object, most: int = _MAX_SHOWN) -> str:
    """The value as text, shortened: no value of a candidate's own class gets here."""
    try:
        text = repr(value)
    except BaseException as error:
        return f"<{type(error).__name__}>"
    return text if len(text) <= most else text[:most] + "…"


class _Asker:
    """Puts requests to the candidate's process; replies become values or exceptions."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._reader = Reader(self._borrow)
        self._classes: dict[str, dict[str, bool]] = {}
        self._instances: dict[int, Instance] = {}
        self._last: tuple[object, tuple[object, ...], object] | None = None
        self._broken: BaseException | None = None  # whatever the tests catch, the trial has failed
        self._is_doubtful = False

    def load(self, source: str, classes: dict[str, dict[str, bool]]) -> None:
        """Have the candidate's text run. Of `classes` the task tells the members, and which are methods.

        Raises:
            BaseException: what running it raised.
        """
        self._classes = classes
        with contextlib.suppress(ConnectionError):  # the reply will tell that it has gone
            self._channel.send(source)
        self._value(self._receive(), ())

    def put_entry_point(self, name: str, names: dict[str, object]) -> None:
        """Define `name` as a stand-in for what the candidate calls so; nothing where it has no such name."""
        reply = self.request(["entry", name])
        if reply != ["missing"]:
            value = self._value(reply, ())
            names[name] = EntryPoint(self, name) if isinstance(value, Opaque | type) else value

    def create(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call an entry point; of a class that the task knows, the instance has that class's members."""
        made = self.call(name, args, kwargs)
        if name in self._classes and type(made) is Opaque:
            number = object.__getattribute__(made, "_number")
            made = self._instances[number] = Instance(self, number, self._classes[name])
        return made

    def get(self, number: int, name: str) -> object:
        """An attribute of one of the candidate's instances."""
        return self._value(self.request(["get", number, name]), ())

    def call(self, target: str | list[object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call the candidate's function with copies of the arguments."""
        seen_again = {at for at, count in enumerate(_references(args)) if count > _FRESH}
        forms = [encode(arg, self._lend) for arg in args]
        named = {name: encode(arg, self._lend) for name, arg in kwargs.items()}
        self._last = (target, args, None)
        value, changed = self._reply_to_call(target, forms, named, len(args))
        self._is_doubtful |= bool(changed & seen_again)
        self._last = (target, args, value)
        return value

    def _reply_to_call(
        self, target: str | list[object], args: list[object], kwargs: dict[str, object], num_args: int
    ) -> tuple[object, set[int]]:
        reply = self.request(["call", target, args, kwargs])
        changed: set[int] = set()
        return self._value(reply, range(num_args), changed), changed

    def next(self, number: int) -> list[object]:
        """The next item of the candidate's iterator, in a list, which is empty at the end."""
        items = self._value(self.request(["next", number]), ())
        if type(items) is not list or len(items) > 1:
            self._break(Malformed("expected an item or none"))
        return items

    def request(self, message: list[object]) -> object:
        """The reply to a request, as it came."""
        if self._broken is not None:
            raise self._broken
        try:
            self._channel.send(message)
        except ConnectionError:
            self._break(CandidateGone())
        return self._receive()

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome of tests that ended, unless something happened on the way that they cannot undo."""
        if self._broken is not None:
            return _failure(self._broken, self)
        if self._is_doubtful:
            return Outcome(outcome.kind, outcome.detail, outcome.nonce, True, outcome.shown)
        return outcome

    def last_call(self) -> dict[str, str]:
        """The last call and its answer, as texts."""
        if self._last is None:
            return {}
        target, args, value = self._last
        return {"input": f"{target}{_shown(args)}", "found": _shown(value)}

    def needs_together(self) -> NoReturn:
        """Say that the tests need more than data."""
        self._break(NeedsTogether())

    def _receive(self) -> object:
        try:
            return self._channel.receive()
        except EOFError:
            self._break(CandidateGone())
        except Malformed as error:
            self._break(error)

    def _value(self, reply: object, positions: Any, changed: set[int] | None = None) -> object:
        match reply:
            case ["value", form, list() as at] if all(type(one) is int and one in positions for one in at):
                if changed is not None:
                    changed.update(at)
                try:
                    return self._reader.read(form)
                except Malformed as error:
                    self._break(error)
            case ["raised", str(name), str(message), None | int() as number]:
                raise _exception(name, message, number)
            case ["missing"]:
                raise NameError("the entry point is not defined")
        self._break(Malformed("neither a value nor an error"))

    def _break(self, error: BaseException) -> NoReturn:
        self._broken = self._broken or error
        raise self._broken

    def _borrow(self, number: int, is_iterator: bool) -> object:
        return self._items(number) if is_iterator else self._instances.get(number) or Opaque(self, number)

    def _items(self, number: int) -> Iterator[object]:
        while items := self.next(number):
            yield items[0]

    def _lend(self, thing: object, is_iterator: bool) -> int:
        if isinstance(thing, Opaque):
            return object.__getattribute__(thing, "_number")  # type: ignore[no-any-return]
        self.needs_together()


class EntryPoint:
    """A stand-in for a function or class of the candidate. It can be called; the rest is not data."""

    def __init__(self, ask: _Asker, name: str):
        self.__dict__.update(_ask=ask, __name__=name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._ask.create(self.__name__, args, kwargs)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        self._refuse(name)

    def _refuse(self, *_: object) -> NoReturn:
        ask: _Asker = self.__dict__["_ask"]
        ask.needs_together()

    __instancecheck__ = __subclasscheck__ = __mro_entries__ = __setattr__ = __getitem__ = _refuse


class Opaque:
    """A stand-in for an object that is not data. It can be handed back to the candidate, nothing else."""

    def __init__(self, ask: _Asker, number: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> object:
        self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        ask: _Asker = object.__getattribute__(self, "_ask")
        ask.needs_together()

    __hash__ = object.__hash__


for _name in (
    "setattr", "call", "iter", "bool", "len", "getitem", "contains", "eq", "ne", "lt", "le", "gt", "ge",
    "str", "repr", "format", "int", "float", "index", "enter", "exit",
    "next", "abs", "neg", "round", "add", "radd",
    "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod",
    "pow", "and", "or", "xor", "invert",
):  # fmt: skip
    setattr(Opaque, f"__{_name}__", Opaque._refuse)


class Instance(Opaque):
    """A stand-in for an instance of a class that the task knows: its members are entry points too.

    Comparisons and arithmetic are not: an object must not tell the tests that it equals what they expect.
    """

    def __init__(self, ask: _Asker, number: int, members: dict[str, bool]):
        super().__init__(ask, number)
        object.__setattr__(self, "_members", members)

    def __getattr__(self, name: str) -> object:
        ask, number = object.__getattribute__(self, "_ask"), object.__getattribute__(self, "_number")
        is_method = object.__getattribute__(self, "_members").get(name)
        if is_method is None:
            self._refuse()
        if not is_method:
            return ask.get(number, name)
        return lambda *args, **kwargs: ask.call([number, name], args, kwargs)

    def __len__(self) -> int:
        length = self.__getattr__("__len__")()  # type: ignore[operator]
        return length if type(length) is int else -1

    def __bool__(self) -> bool:
        members = object.__getattribute__(self, "_members")
        if "__bool__" in members:
            return self.__getattr__("__bool__")() is True  # type: ignore[operator]
        return len(self) > 0 if "__len__" in members else True

    def __iter__(self) -> Iterator[object]:
        return iter(self.__getattr__("__iter__")())  # type: ignore[operator]

    def __getitem__(self, key: object) -> object:
        return self.__getattr__("__getitem__")(key)  # type: ignore[operator]

    def __contains__(self, item: object) -> bool:
        return self.__getattr__("__contains__")(item) is True  # type: ignore[operator]

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.__getattr__("__call__")(*args, **kwargs)  # type: ignore[operator]

    def __str__(self) -> str:
        return str(self.__getattr__("__str__")())  # type: ignore[operator]


def _references(args: tuple[object, ...]) -> list[int]:
    return [sys.getrefcount(arg) for arg in args]


class _Probe:
    """Takes the way of a call of an entry point."""

    def __call__(self, *args: object) -> list[int]:
        return self.create(args)

    def create(self, args: tuple[object, ...]) -> list[int]:
        return self.references(args)

    def references(self, args: tuple[object, ...]) -> list[int]:
        return _references(args)


_FRESH = _Probe()([])[0]
"""What `sys.getrefcount` says of an argument that nothing but the call refers to."""

_EXCEPTIONS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    # Iteration ends silently on the first two; the others want more than a message.
    and not issubclass(kind, StopIteration | StopAsyncIteration | UnicodeError | BaseExceptionGroup)
} | {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}


def _exception(name: str, message: str, number: object) -> BaseException:
    """An exception of Python's own types, by its name in a closed table."""
    kind = _EXCEPTIONS.get(name)
    if kind is None:
        kind, message = (ValueError, message) if "Unicode" in name else (RuntimeError, f"raised {name}")
    if issubclass(kind, OSError) and isinstance(number, int):
        return kind(number, message)
    return kind(message)
