"""The worker process: keeps a fork server and a test runner warm, and watches every trial between them.

Started by `pool` as `python -I -S -c ...`; speaks length-prefixed JSON on its standard input and output:
first settings in and the layers of isolation out, then jobs in and verdicts out. One program at a time.
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
from typing import TypedDict, cast

from starcoder.evaluate.sandbox import commands, isolation, runner, usage
from starcoder.evaluate.sandbox.candidate import warm_up
from starcoder.evaluate.sandbox.isolation import Context, Root, WorkerEnded
from starcoder.evaluate.sandbox.runner import Order, Outcome
from starcoder.evaluate.sandbox.schema import Channel, Malformed
from starcoder.evaluate.sandbox.servers import ForkServer, IsolatedProcess, IsolationFailed, TestRunner, Texts
from starcoder.evaluate.sandbox.verdicts import Kind, Limits

_LENGTH = struct.Struct("<I")
_WATCH_S, _CLOSE_WATCH_S = 0.02, 0.004  # between two looks at what is used; the second above half the memory
_PATIENCE = 60  # times the time limit: an end by the wall clock, whatever kept the program waiting
_TIME_FACTOR = 4  # of the reference's own time. Source: evalplus v0.3.1: evalplus/config.py
_COMMON = "bisect collections copy datetime functools heapq itertools json math operator re string typing"
"""Modules that most programs use, imported before any; each more makes every fork slower."""
_TRIALS_UNWEIGHED = 16  # between two looks at the size of the test runner
_MAX_RUNNER_BYTES = 64 << 20  # a test runner that answers have blown up is replaced


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
    root = Root(
        settings["root"],
        tuple(settings["readable"]),
        tuple(settings["packages"]),
        frozenset(settings["without"]),
    )
    context = isolation.enter_worker(root)
    sys.path += isolation.package_paths(root, in_root="read-only-root" in context.layers)
    for name in (*_COMMON.split(), *settings["preload"]):
        with contextlib.suppress(ImportError):
            __import__(name)
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    warm_up()
    gc.collect()
    gc.freeze()  # forks then share these pages
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8")
    Worker(context, requests, replies, cpus).serve()


class Worker:
    """One after another, programs from `requests`, verdicts to `replies`."""

    def __init__(self, context: Context, requests: int, replies: int, cpus: Sequence[int]):
        self._cpus = cpus
        self._context, self._requests, self._replies = context, requests, replies
        self._limits: Limits | None = None
        self._fork_server: ForkServer | None = None
        self._test_runner: TestRunner | None = None
        self._texts = Texts()
        self._num_trials = 0

    def serve(self) -> None:
        """Until the requests end.

        Raises:
            WorkerEnded: in every forked process, and here at the end.
        """
        self._reply({"layers": sorted(self._context.layers)})
        while True:
            job = json.loads(_read_frame(self._requests))
            limits = Limits(**job["limits"])
            self._texts.read(self._requests, sum(job["sizes"]))
            began = time.monotonic()
            try:
                outcome = self._try(job, limits)
            except IsolationFailed as failed:  # trouble of the machine, not of the program
                self._reply({"trouble": str(failed)})
                continue
            seconds = time.monotonic() - began
            self._reply({"kind": outcome.kind, "detail": outcome.detail, "seconds": seconds, **outcome.shown})

    def _try(self, job: _Job, limits: Limits) -> Outcome:
        if job["language"] != "python":
            return self._try_commands(job, limits)
        apart = self._try_python(job, limits, together=False)
        if apart.kind != "together" and not apart.is_doubtful:
            return apart
        together = self._try_python(job, limits, together=True)
        if together.kind != "unconfirmed":  # a second run can only take away from the first
            return together if apart.kind in ("together", "passed") else apart
        return apart if apart.kind == "passed" else together

    def _try_python(self, job: _Job, limits: Limits, *, together: bool) -> Outcome:
        fork_server, test_runner = self._ready(limits)
        order = Order(os.urandom(16).hex(), together, limits.cpu_s)
        ours, theirs = socket.socketpair()
        with ours, theirs, contextlib.suppress(ConnectionError, TimeoutError):
            fork_server.fork(ours)
            test_runner.begin(theirs, order, self._texts, job["sizes"], _PATIENCE * limits.timeout_s)
        outcome, is_answer = _Watch(self._context, limits, test_runner, fork_server).outcome()
        if not is_answer or outcome.kind == "memory" or self._has_grown(test_runner):
            self._end_test_runner()
        status, is_clean = fork_server.clear() if is_answer else (0, False)
        if not is_clean:
            self._end_fork_server()
        outcome = runner.exit_reason(status) if outcome.kind == "gone" else outcome
        return _believed(outcome, order.nonce)

    def _try_commands(self, job: _Job, limits: Limits) -> Outcome:
        """Isolation of its own for every program: it costs less than a compiler."""
        language, tools = job["language"], job["tools"]
        nonce = os.urandom(16).hex()

        def live(line: socket.socket, _tmp: str) -> None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cpus)  # compilers and run times have threads
            channel = Channel(line)
            source, task = map(channel.receive_text, job["sizes"])
            outcome = commands.judge(language, tools, source, (json.loads(task)["tests"], nonce), limits)
            channel.send({"kind": outcome.kind, "detail": outcome.detail, "nonce": outcome.nonce})

        room = commands.room(language, limits)
        process = IsolatedProcess(self._context, room, live, commands=True)
        with contextlib.suppress(ConnectionError):
            self._texts.send(Channel(process.line))
        longer = replace(room, timeout_s=limits.timeout_s + commands.compile_s(language))
        outcome, _ = _Watch(self._context, longer, process, process).outcome()
        process.end(self._processes())
        return _believed(outcome, nonce)

    def _ready(self, limits: Limits) -> tuple[ForkServer, TestRunner]:
        """A fork server and a test runner for these limits, new where the last program left none.

        Raises:
            IsolationFailed: they cannot be started.
        """
        if limits != self._limits:
            self._end_fork_server()
            self._end_test_runner()
            self._limits = limits
        self._test_runner = self._test_runner or TestRunner(self._context, limits)
        self._fork_server = self._fork_server or ForkServer(self._context, limits)
        return self._fork_server, self._test_runner

    def _has_grown(self, test_runner: TestRunner) -> bool:
        self._num_trials += 1
        if self._num_trials % _TRIALS_UNWEIGHED:
            return False
        return usage.private_bytes(test_runner.process) > _MAX_RUNNER_BYTES

    def _end_test_runner(self) -> None:
        test_runner, self._test_runner = self._test_runner, None
        if test_runner:
            test_runner.end(self._processes())

    def _end_fork_server(self) -> None:
        fork_server, self._fork_server = self._fork_server, None
        if fork_server:
            fork_server.end(self._processes())

    def _processes(self) -> set[int]:
        """Of those that are to stay."""
        return {server.process for server in (self._fork_server, self._test_runner) if server}

    def _reply(self, message: object) -> None:
        data = json.dumps(message).encode()
        os.write(self._replies, _LENGTH.pack(len(data)) + data)


class _Watch:
    """Waits for the outcome of one trial and stops it at its limits.

    Time is counted without that in which processes waited for a core, so that a verdict does not depend on
    what else the machine does, and without that in which the task's reference computed what is expected.
    """

    def __init__(
        self, context: Context, limits: Limits, runner: IsolatedProcess, candidates: IsolatedProcess
    ):
        self._limits = limits
        self._line, self._candidates = runner.line, candidates
        self._runner = 0 if runner is candidates else runner.process
        self._is_watching = "usage-watch" in context.layers
        self._allowed_s = limits.timeout_s
        self._began = time.monotonic()
        self._before: usage.Usage | None = None
        self._step_s = _WATCH_S
        self._reference_s = 0.0
        self._reference_began_s: float | None = None  # the test runner's CPU time then; None: at rest

    def outcome(self) -> tuple[Outcome, bool]:
        """What the test runner says, or what stopped it; and which of both it is."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while True:
            if poll.poll(1000 * self._step_s):
                self._line.settimeout(_PATIENCE * self._allowed_s)
                try:
                    message = Channel(self._line).receive()
                except (EOFError, TimeoutError, Malformed):
                    return Outcome("error", "the process that runs the tests was ended"), False
                if not isinstance(message, dict) or "kind" in message:
                    return _outcome(message), True
                self._note_reference(message.get("reference_s"))
            elif stopped := self._exceeded():
                return stopped, False

    def _note_reference(self, seconds: float | None) -> None:
        if seconds is None:
            measured = usage.measure(self._runner).runner_cpu_s if self._is_watching else 0.0
            self._reference_began_s = measured
        else:
            self._reference_s, self._reference_began_s = self._reference_s + seconds, None
            self._allowed_s = max(self._limits.timeout_s, _TIME_FACTOR * self._reference_s)

    def _exceeded(self) -> Outcome | None:
        """The limit that the program is above, if there is one."""
        allowed_s = self._allowed_s
        spent_s = time.monotonic() - self._began - self._reference_s
        late = Outcome("timeout", f"not done after {allowed_s:g} s")
        if not self._is_watching:
            return late if self._reference_began_s is None and spent_s > allowed_s else None
        now = usage.measure(self._runner)
        before = self._before = self._before or _base(now, self._candidates.process)
        limit_bytes = self._limits.memory_bytes
        servers = {self._runner, self._candidates.process}
        held_bytes = usage.memory_bytes(now, servers, limit_bytes, self._candidates.tmp)
        self._step_s = _CLOSE_WATCH_S if 2 * held_bytes > limit_bytes else _WATCH_S
        if held_bytes > limit_bytes:
            return Outcome("memory", f"more than {limit_bytes >> 20} MiB together")
        cpu_limit_s = max(self._limits.cpu_s, allowed_s)
        if now.candidate_cpu_s - before.candidate_cpu_s > cpu_limit_s:
            return Outcome("timeout", f"more than {cpu_limit_s:g} s of CPU time")
        runner_s = now.runner_cpu_s - before.runner_cpu_s - self._reference_s
        if self._reference_began_s is not None:
            reference_s = now.runner_cpu_s - self._reference_began_s
            spent_s, runner_s = spent_s - reference_s, runner_s - reference_s
        server = self._candidates.process
        waited_s = now.waited_s(server) - before.waited_s(server)
        # What the test runner computes is not the candidate's time, unless its answers make it compute long.
        not_counted_s = waited_s + min(max(0.0, runner_s), 2 * allowed_s)
        return late if spent_s - not_counted_s > allowed_s or spent_s > _PATIENCE * allowed_s else None


def _base(first: usage.Usage, fork_server: int) -> usage.Usage:
    """What the servers had used before: a candidate's own processes began with the trial."""
    servers = [process for process in first.candidate if process.number == fork_server]
    return usage.Usage(tuple(servers), first.runner)


def _outcome(message: object) -> Outcome:
    """What the test runner says; in languages with tool-chains it shares its user with the candidate."""
    match message:
        case {"kind": str(kind), "detail": str(detail), "nonce": str(nonce), **rest}:
            shown, is_doubtful = rest.get("shown", {}), rest.get("is_doubtful") is True
            return Outcome(cast(Kind, kind), detail, nonce, is_doubtful, cast("dict[str, str]", shown))
    return Outcome("error", "the test runner said nothing")


def _believed(outcome: Outcome, nonce: str) -> Outcome:
    """`outcome`, unless it claims success without the nonce."""
    if outcome.kind in ("passed", "unconfirmed") and outcome.nonce != nonce:
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
