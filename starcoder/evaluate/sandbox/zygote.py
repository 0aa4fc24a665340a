"""The worker process: keeps a yard and a court warm and watches every trial between them.

Started by `pool` as `python -I -S -c ...`; speaks length-prefixed JSON on its standard input and output:
first settings in and what it reached out, then jobs in and verdicts out. It holds one program at a time.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TypedDict, cast

from starcoder.evaluate.sandbox import commands, isolation, trial
from starcoder.evaluate.sandbox.candidate import rehearse
from starcoder.evaluate.sandbox.isolation import Ground, Place, WorkerEnded
from starcoder.evaluate.sandbox.trial import Outcome, Task
from starcoder.evaluate.sandbox.verdicts import Kind, Limits
from starcoder.evaluate.sandbox.wire import Channel
from starcoder.evaluate.sandbox.yard import Court, Enclosure, Texts, WallDown, Yard

_LENGTH = struct.Struct("<I")
_WATCH_S = 0.02  # how often memory is looked at
_COMMON = "bisect collections copy datetime functools heapq itertools json math operator re string typing"
"""Modules that most programs use, imported before any; each more makes every fork slower."""
_TRIED_UNWEIGHED = 16  # programs between two looks at the size of the court
_MOST_COURT_BYTES = 64 << 20  # a court that answers have blown up is left for a new one


class _Job(TypedDict):
    language: str
    sizes: list[int]
    tools: dict[str, str]
    limits: dict[str, float]


def main() -> None:
    """Serve until the standard input ends; never returns."""
    code = 0
    try:
        _work()
    except WorkerEnded as ended:
        code = int(ended.args[0])
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        code = 1
    os._exit(code)  # also in the forked programs, in which nothing of the worker's must run


def _work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a judge must not be interruptible by its candidate
    settings = json.loads(_read_frame(0))
    cpus = sorted(os.sched_getaffinity(0))
    # What tries one program takes turns; waking each other on another core costs more than the program.
    with contextlib.suppress(OSError):  # some containers forbid it
        os.sched_setaffinity(0, {cpus[settings["number"] % len(cpus)]})
    place = Place(
        settings["root"],
        tuple(settings["readable"]),
        tuple(settings["packages"]),
        frozenset(settings["without"]),
    )
    ground = isolation.enter_worker(place)
    sys.path += isolation.package_paths(place, in_root="read-only-root" in ground.reached)
    for name in (*_COMMON.split(), *settings["preload"]):
        with contextlib.suppress(ImportError):
            __import__(name)
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    rehearse()
    gc.collect()
    gc.freeze()  # forks then share these pages
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8")
    Worker(ground, requests, replies, cpus).serve()


class Worker:
    """One after another, programs from `requests`, verdicts to `replies`."""

    def __init__(self, ground: Ground, requests: int, replies: int, cpus: Sequence[int]):
        self._cpus = cpus
        self._ground, self._requests, self._replies = ground, requests, replies
        self._limits: Limits | None = None
        self._yard: Yard | None = None
        self._court: Court | None = None
        self._texts = Texts()
        self._num_tried = 0

    def serve(self) -> None:
        """Until the requests end.

        Raises:
            WorkerEnded: in every forked process, and here at the end.
        """
        self._reply({"reached": sorted(self._ground.reached)})
        while True:
            job = json.loads(_read_frame(self._requests))
            limits = Limits(**job["limits"])
            self._texts.read(self._requests, sum(job["sizes"]))
            began = time.monotonic()
            try:
                outcome = self._try(job, limits)
            except WallDown as down:
                outcome = Outcome("isolation", f"a wall does not stand: {down}")
            seconds = time.monotonic() - began
            self._reply({"kind": outcome.kind, "detail": outcome.detail, "seconds": seconds})

    def _try(self, job: _Job, limits: Limits) -> Outcome:
        if job["language"] != "python":
            return self._try_commands(job, limits)
        outcome = Outcome("inside")
        for inside in (False, True):
            if outcome.kind == "inside":
                nonce = os.urandom(16).hex()
                outcome = self._try_python(Task(nonce, inside, limits.cpu_s), job["sizes"], limits)
                outcome = _believed(outcome, nonce)
        return outcome

    def _try_python(self, task: Task, sizes: list[int], limits: Limits) -> Outcome:
        yard, court = self._ready(limits)
        deadline = time.monotonic() + limits.timeout_s
        ours, theirs = socket.socketpair()
        with ours, theirs, contextlib.suppress(ConnectionError, TimeoutError):
            yard.admit(ours)
            court.open(theirs, task, self._texts, sizes, limits.timeout_s)
        outcome, is_answer = self._watch(court.line, deadline, limits)
        if not is_answer or outcome.kind == "memory" or self._has_grown(court):
            self._end_court()
        status, is_clean = yard.clear() if is_answer else (0, False)
        if not is_clean:
            self._end_yard()
        return trial.obituary(status) if outcome.kind == "gone" else outcome

    def _try_commands(self, job: _Job, limits: Limits) -> Outcome:
        """Walls of its own for every program: they cost less than a compiler."""
        language, tools = job["language"], job["tools"]
        nonce = os.urandom(16).hex()

        def live(line: socket.socket, _tmp: str) -> None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cpus)  # compilers and run times have threads
            channel = Channel(line)
            source, tests = map(channel.receive_text, job["sizes"])
            outcome = commands.hold(language, tools, source, (tests, nonce), limits)
            channel.send([outcome.kind, outcome.detail, outcome.nonce])

        place = Enclosure(self._ground, commands.room(language, limits), live, commands=True)
        deadline = time.monotonic() + limits.timeout_s + commands.compile_s(language)
        with contextlib.suppress(ConnectionError):
            self._texts.send(Channel(place.line))
        outcome, _ = self._watch(place.line, deadline, limits)
        place.end(self._processes())
        return _believed(outcome, nonce)

    def _ready(self, limits: Limits) -> tuple[Yard, Court]:
        """A yard and a court for these limits, new where the last program left none.

        Raises:
            WallDown: they cannot be had.
        """
        if limits != self._limits:
            self._end_yard()
            self._end_court()
            self._limits = limits
        self._court = self._court or Court(self._ground, limits)
        self._yard = self._yard or Yard(self._ground, limits)
        return self._yard, self._court

    def _watch(self, line: socket.socket, deadline: float, limits: Limits) -> tuple[Outcome, bool]:
        """What the judge says, or what stopped it; and which of both it is."""
        poll = select.poll()
        poll.register(line, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(1000 * min(left, _WATCH_S)):
                line.settimeout(left)
                try:
                    return _outcome(Channel(line).receive()), True
                except (EOFError, TimeoutError):
                    return Outcome("error", "the process that runs the tests was ended"), False
            if "memory-sum" in self._ground.reached:
                others = [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
                if isolation.resident_bytes(others) > limits.memory_bytes:
                    return Outcome("memory", f"more than {limits.memory_bytes >> 20} MiB together"), False
        return Outcome("timeout", f"not done after {limits.timeout_s:g} s"), False

    def _has_grown(self, court: Court) -> bool:
        self._num_tried += 1
        if self._num_tried % _TRIED_UNWEIGHED:
            return False
        return isolation.resident_bytes([court.process]) > _MOST_COURT_BYTES

    def _end_court(self) -> None:
        court, self._court = self._court, None
        if court:
            court.end(self._processes())

    def _end_yard(self) -> None:
        yard, self._yard = self._yard, None
        if yard:
            yard.end(self._processes())

    def _processes(self) -> set[int]:
        """Of the places that are to stay."""
        return {place.process for place in (self._yard, self._court) if place}

    def _reply(self, message: object) -> None:
        data = json.dumps(message).encode()
        os.write(self._replies, _LENGTH.pack(len(data)) + data)


def _outcome(message: object) -> Outcome:
    """What a judge says, which in languages with tool-chains shares its user with the candidate."""
    match message:
        case [str(kind), str(detail), str(nonce)]:
            return Outcome(cast(Kind, kind), detail, nonce)
    return Outcome("error", "the judge said nothing")


def _believed(outcome: Outcome, nonce: str) -> Outcome:
    """`outcome`, unless it claims success without the nonce."""
    if outcome.kind == "passed" and outcome.nonce != nonce:
        return Outcome("exit", "a verdict without the nonce")
    return outcome


def _read_frame(descriptor: int) -> bytes:
    """One length-prefixed message, and no byte more.

    Raises:
        WorkerEnded: the input ended.
    """
    (length,) = _LENGTH.unpack(_read_exactly(descriptor, _LENGTH.size))
    return _read_exactly(descriptor, length)


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, min(count - len(parts), 1 << 20))
        if not part:
            raise WorkerEnded(0)
        parts += part
    return bytes(parts)
