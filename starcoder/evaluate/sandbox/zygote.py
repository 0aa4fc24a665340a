"""The worker process: stays warm and forks once for every program, behind that program's own walls.

Started by `pool` as `python -I -S -c ...`; speaks length-prefixed JSON on its standard input and output:
first a `Hello`, then for every program a job and its tests in, a verdict out. It holds one program at a time.
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
from dataclasses import replace

from starcoder.evaluate.sandbox import commands, isolation, trial
from starcoder.evaluate.sandbox.isolation import Ground, Place, WorkerEnded
from starcoder.evaluate.sandbox.trial import NeedsInside, Outcome
from starcoder.evaluate.sandbox.verdicts import Limits
from starcoder.evaluate.sandbox.wire import Channel

_LENGTH = struct.Struct("<I")
_WATCH_S = 0.02  # how often memory is looked at
_COMMON = (
    "bisect collections copy datetime functools heapq itertools json math operator random re string typing"
)
"""Modules that most programs use, imported before any; each more makes every fork slower."""


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
    gc.collect()
    gc.freeze()  # forks then share these pages
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8")
    Worker(ground, requests, replies).serve()


class Worker:
    """One after another, programs from `requests`, verdicts to `replies`."""

    def __init__(self, ground: Ground, requests: int, replies: int):
        self._ground, self._requests, self._replies = ground, requests, replies
        self._has_own_pids = "pid-namespace" in ground.reached
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY) if self._has_own_pids else -1

    def serve(self) -> None:
        """Until the requests end.

        Raises:
            WorkerEnded: in every forked program, and here at the end.
        """
        self._reply({"reached": sorted(self._ground.reached)})
        while True:
            job = json.loads(_read_frame(self._requests))
            limits = Limits(**job["limits"])
            tests = None
            began = time.monotonic()
            for inside in (False, True):
                job["inside"] = inside
                result, tests = self._hold(job, limits, tests)
                if result is not None:
                    break
            kind, detail = result or ("error", "the tests could not be run")
            self._reply({"kind": kind, "detail": detail, "seconds": time.monotonic() - began})

    def _hold(
        self, job: dict[str, object], limits: Limits, tests: str | None
    ) -> tuple[tuple[str, str] | None, str]:
        """One trial and the tests it used; no result when it has to be held again, inside."""
        ours, theirs = socket.socketpair()
        deadline = time.monotonic() + limits.timeout_s + commands.compile_s(str(job["language"]))
        ground = self._ground
        if "private-tmp" not in ground.reached:
            ground = replace(ground, tmp=f"{ground.place.root}/{os.urandom(8).hex()}")
            os.mkdir(ground.tmp, 0o700)
        if self._has_own_pids:
            isolation.next_program_in_own_pids()
        program = os.fork()
        if program == 0:
            for descriptor in (self._requests, self._replies, self._own_pids, ours.fileno()):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            _in_program(ground, job, limits, Channel(theirs))
        theirs.close()
        try:
            if self._has_own_pids:
                isolation.later_children_in(self._own_pids)
            if tests is None:
                tests = _read_frame(self._requests).decode()
            nonce = os.urandom(16).hex()
            outcome = self._watch(ours, [tests, nonce], deadline, limits)
        finally:
            ours.close()
            self._end(program)
            if ground.tmp != self._ground.tmp:
                _remove(ground.tmp)
        return _believe(outcome, nonce), tests

    def _watch(self, ours: socket.socket, message: object, deadline: float, limits: Limits) -> object:
        """What the program's judge says, or what stopped it."""
        ours.settimeout(max(0.01, deadline - time.monotonic()))
        channel = Channel(ours)
        with contextlib.suppress(ConnectionError, TimeoutError):
            channel.send(message)
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(1000 * min(left, _WATCH_S)):
                try:
                    return channel.receive()
                except (EOFError, TimeoutError):
                    return ["error", "the process that runs the tests was ended", ""]
            if "memory-sum" in self._ground.reached:
                others = [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
                if isolation.resident_bytes(others) > limits.memory_bytes:
                    return ["memory", f"more than {limits.memory_bytes >> 20} MiB together", ""]
        return ["timeout", f"not done after {limits.timeout_s:g} s", ""]

    def _end(self, program: int) -> None:
        """End the program and everything it started."""
        with contextlib.suppress(OSError):
            os.kill(program, signal.SIGKILL)
        if not self._has_own_pids:
            with contextlib.suppress(OSError):
                os.killpg(program, signal.SIGKILL)
        os.waitpid(program, 0)
        while not self._has_own_pids and (orphans := _children()):
            for orphan in orphans:
                with contextlib.suppress(OSError):
                    os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)

    def _reply(self, message: object) -> None:
        data = json.dumps(message).encode()
        os.write(self._replies, _LENGTH.pack(len(data)) + data)


def _remove(folder: str) -> None:
    """Remove a folder that a program has written, which may have shut itself off."""
    import shutil  # only on machines without namespaces; every fork would pay for it

    shutil.rmtree(folder, ignore_errors=True)


def _in_program(ground: Ground, job: dict[str, object], limits: Limits, channel: Channel) -> None:
    """The forked process: walls first, then the trial. Always raises `WorkerEnded`."""
    language, source = str(job["language"]), str(job["source"])
    python = language == "python"
    outcome: Outcome | None
    try:
        space = limits.memory_bytes if python else None
        room = limits if python else commands.room(language, limits)
        isolation.confine(ground, room, commands=not python, address_space=space)
    except OSError as error:
        outcome = Outcome("isolation", f"a wall does not stand: {error}")
    else:
        gc.enable()
        try:
            if python:
                outcome = trial.hold(source, lambda: _receive(channel), inside=bool(job["inside"]))
            else:
                tools = job["tools"]
                assert isinstance(tools, dict)
                outcome = commands.hold(language, tools, source, _receive(channel), limits)
        except NeedsInside:
            outcome = Outcome("error", "inside")
        except BaseException as error:
            outcome = Outcome(*trial.classify(error))
    if outcome is not None:
        channel.send([outcome.kind, outcome.detail, outcome.nonce])
    raise WorkerEnded(0)


def _receive(channel: Channel) -> tuple[str, str]:
    message = channel.receive()
    assert isinstance(message, list), "the worker sends tests and nonce"
    tests, nonce = message
    return tests, nonce


def _believe(outcome: object, nonce: str) -> tuple[str, str] | None:
    match outcome:
        case ["error", "inside", ""]:
            return None
        case ["passed", str(detail), shown]:
            return ("passed", detail) if shown == nonce else ("exit", "a verdict without the nonce")
        case [str(kind), str(detail), _]:
            return kind, detail
    return "error", "the judge said nothing"


def _children() -> Sequence[int]:
    me = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]
    return []


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
