"""The candidate's process: runs the candidate's text, then answers questions about what it defined.

The questions come from the process that runs the tests (`trial`), which believes nothing of the answers.
"""

import socket
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass

from starcoder.evaluate.sandbox.wire import Channel, decode, encode, is_mutable

_MOST_TEXT = 300


def be_candidate(channel: Channel) -> None:
    """Read the candidate's text, run it, and answer questions until the other side ends."""
    lent: list[object] = []
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    answers = _Answers(module, lent)
    reply: list[object]
    try:
        source = channel.receive()
        assert isinstance(source, str), "the tests' side sends the text first"
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


def rehearse(times: int = 12) -> None:
    """Go through a candidate's life in this process, so that its forks need not.

    Python writes into code that it runs for the first times, and a fork pays 3 us for each page it writes to.
    """
    for _ in range(times):
        here, there = socket.socketpair()
        with here, there:
            play = Channel(here)
            play.send("def add(a, b):\n    return a + b\n")
            for _ in range(2):
                play.send(["call", 0, {"t": "tuple", "v": [1, 2]}, {"t": "dict", "v": []}])
            here.shutdown(socket.SHUT_WR)
            be_candidate(Channel(there))
    del sys.modules["candidate"]


def message_of(error: BaseException) -> str:
    """What the error says; nothing where saying it fails."""
    try:
        return str(error)
    except BaseException:  # a candidate's own __str__
        return ""


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
    text, number = message_of(error), None
    if isinstance(error, OSError) and isinstance(error.errno, int):
        number = error.errno
        text = f"{error.strerror}" if error.filename is None else f"{error.strerror}: {error.filename!r}"
    return ["raised", kind.__name__, text[:_MOST_TEXT], number]
