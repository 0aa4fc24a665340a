"""The candidate's process: runs the candidate's text, then calls what it defined, as often as it is asked.

Nothing that this process sends is believed: the test runner (`runner`) reads it by the schema alone. So this
module need not defend itself against the candidate, which can change every line of it.

Requests: a text (the candidate's source), then `["entry", name]`, `["call", name, args, kwargs]`,
`["call", [number, method], args, kwargs]`, `["get", number, name]`, `["next", number]` and
`["together", tests, nonce]`, where numbers stand for objects that were returned before. Replies:
`["value", value, changed]` with the positions of the arguments that the call changed,
`["raised", type, message, errno]`, `["missing"]` or `["nonce", text]`.
"""

import socket
import sys
import types
from collections.abc import Iterator

from starcoder.evaluate.sandbox.schema import Channel, Reader, encode

_MAX_TEXT = 300
_MUTABLE = (list, set, dict, bytearray)


def be_candidate(channel: Channel) -> None:
    """Read the candidate's text, run it, and answer requests until the other side ends."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    answers = _Answers(module)
    reply: list[object]
    try:
        source = channel.receive()
        assert isinstance(source, str), "the test runner sends the text first"
        exec(compile(source, "<candidate>", "exec"), module.__dict__)
        reply = ["value", None, []]
    except BaseException as error:
        reply = _raised(error)
    while True:
        try:
            channel.send(reply)
            request = channel.receive()
        except (EOFError, ConnectionError):
            return
        assert isinstance(request, list), "the test runner sends lists"
        try:
            reply = answers.to(request)
        except BaseException as error:
            reply = _raised(error)


def warm_up(times: int = 12) -> None:
    """Go through a candidate's life in this process, so that its forks need not.

    Python writes into code that it runs for the first times, and a fork pays 3 us for each page it writes to.
    """
    for _ in range(times):
        here, there = socket.socketpair()
        with here, there:
            play = Channel(here)
            play.send("def add(a, b):\n    return a + b\n")
            play.send(["entry", "add"])
            for _ in range(2):
                play.send(["call", "add", [1, [2]], {}])
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
    """Replies to the test runner's requests."""

    def __init__(self, module: types.ModuleType):
        self._names = module.__dict__
        self._lent: list[object] = []
        self._reader = Reader(lambda number, is_iterator: self._lent[number])

    def to(self, request: list[object]) -> list[object]:
        """The reply to one request."""
        match request:
            case ["call", str(name), args, kwargs]:
                return self._call(self._names[name], args, kwargs) if name in self._names else ["missing"]
            case ["call", [int(number), str(method)], args, kwargs]:
                return self._call(getattr(self._lent[number], method), args, kwargs)
            case ["get", int(number), str(name)]:
                return ["value", encode(getattr(self._lent[number], name), self._lend), []]
            case ["entry", str(name)]:
                return self._entry(name)
            case ["next", int(number)]:
                iterator = self._lent[number]
                assert isinstance(iterator, Iterator)
                return ["value", [encode(item, self._lend) for item in _first(iterator)], []]
            case ["together", str(tests), str(nonce)]:
                exec(compile(tests, "<tests>", "exec"), self._names)
                return ["nonce", nonce]
        raise AssertionError(request)

    def _entry(self, name: str) -> list[object]:
        """What an entry point is: something to call, or a value."""
        if name not in self._names:
            return ["missing"]
        value = self._names[name]
        form = {"object": 0} if callable(value) else encode(value, self._lend)
        return ["value", form, []]

    def _call(self, function: object, args_form: object, kwargs_form: object) -> list[object]:
        assert isinstance(args_form, list) and isinstance(kwargs_form, dict) and callable(function)
        args = [self._reader.read(form) for form in args_form]
        kwargs = {name: self._reader.read(form) for name, form in kwargs_form.items()}
        value = encode(function(*args, **kwargs), self._lend)
        changed = [
            at
            for at, (arg, form) in enumerate(zip(args, args_form, strict=True))
            if type(arg) in _MUTABLE and encode(arg, self._lend) != form
        ]
        return ["value", value, changed]

    def _lend(self, thing: object, is_iterator: bool) -> int:
        for number, known in enumerate(self._lent):
            if known is thing:
                return number
        self._lent.append(thing)
        return len(self._lent) - 1


def _first(iterator: Iterator[object]) -> Iterator[object]:
    """The next item, if there is one."""
    for item in iterator:
        yield item
        return


def _raised(error: BaseException) -> list[object]:
    """The reply that says `error` happened, by the nearest exception type that Python itself has."""
    kind = next(cls for cls in type(error).__mro__ if cls.__module__ == "builtins")
    text, number = message_of(error), None
    if isinstance(error, OSError) and isinstance(error.errno, int):
        number = error.errno
        text = f"{error.strerror}" if error.filename is None else f"{error.strerror}: {error.filename!r}"
    return ["raised", kind.__name__, text[:_MAX_TEXT], number]
