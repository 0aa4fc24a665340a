"""The two processes that try programs: the fork server, which forks candidates, and the test runner.

Each isolates itself once and then serves one program after another, so that a short program costs one fork
and no namespace. They cannot reach each other. The fork server never holds a text, tests or a nonce, nor does
the worker that it comes from (`Texts`), so a candidate, its child, finds none in its memory. It is replaced
as soon as a program leaves anything behind: a process, or any change of /tmp.
"""

import contextlib
import gc
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Set
from dataclasses import asdict, replace

from starcoder.evaluate.sandbox import isolation, runner
from starcoder.evaluate.sandbox.candidate import be_candidate
from starcoder.evaluate.sandbox.isolation import Context, WorkerEnded
from starcoder.evaluate.sandbox.schema import Channel
from starcoder.evaluate.sandbox.verdicts import Limits

_FORK, _CLEAR = b"f", b"c"
_DESCRIPTOR_SIZE = 4
_CLEARED = struct.Struct("<i?")
_PATIENCE_S = 5.0  # a fork server that takes longer to end a program is ended itself
_LINE = 3  # the descriptor of the line to the other side, in every isolated process
_MOST_DESCRIPTORS = 256
_CLOCK_REALTIME_COARSE = 5  # what files' times are taken from


class IsolationFailed(Exception):
    """A layer of isolation could not be put on; the program must not be run."""


class Texts:
    """The texts of a program, passed on unread in memory that forks do not get."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._size_bytes = 0

    def read(self, descriptor: int, size_bytes: int) -> None:
        """Replace them by the next bytes of `descriptor`.

        Raises:
            WorkerEnded: it ends before.
        """
        self._memory.close()
        self._memory = mmap.mmap(-1, max(1, size_bytes))
        self._memory.madvise(mmap.MADV_DONTFORK)
        self._size_bytes, num_read = size_bytes, 0
        with memoryview(self._memory) as view:
            while num_read < size_bytes:
                with view[num_read:size_bytes] as rest:
                    count = os.readv(descriptor, [rest])
                if not count:
                    raise WorkerEnded(0)
                num_read += count

    def send(self, channel: Channel) -> None:
        """Send them all."""
        with memoryview(self._memory) as view, view[: self._size_bytes] as texts:
            channel.send_bytes(texts)


class IsolatedProcess:
    """A child of this process, isolated from it, and the line to it."""

    def __init__(
        self,
        context: Context,
        limits: Limits,
        live: Callable[[socket.socket, str], None],
        *,
        commands: bool = False,
    ):
        """Start the process, in which `live` gets the other end of the line and the folder to write in.

        Raises:
            IsolationFailed: the process could not isolate itself.
            WorkerEnded: in that process.
        """
        self._has_own_pids = "pid-namespace" in context.layers
        self._context = context
        if "private-tmp" not in context.layers:
            self._context = replace(context, tmp=f"{context.root.folder}/{os.urandom(8).hex()}")
            os.mkdir(self._context.tmp, 0o700)
        self.line, theirs = socket.socketpair()
        self.process = self._fork()
        if self.process == 0:
            self.line.detach()
            _keep_only_line(theirs.detach())
            _live_isolated(self._context, limits, live, commands=commands)
        theirs.close()
        hello, self.tmp = _receive_descriptor(self.line, 1 << 10)
        """A descriptor of the /tmp in memory that only its programs write to; -1 without one."""
        if hello != b"+":
            self.end()
            raise IsolationFailed(hello.decode(errors="replace") or "the process ended")

    def _fork(self) -> int:
        if not self._has_own_pids:
            return os.fork()
        own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        isolation.next_program_in_own_pids()
        process = os.fork()
        if process:
            isolation.later_children_in(own_pids)
            os.close(own_pids)
        return process

    def end(self, spared: Set[int] = frozenset()) -> None:
        """End the process and all that came from it. Without pid namespaces: every child but `spared`."""
        self.line.close()
        if self.tmp >= 0:
            os.close(self.tmp)
            self.tmp = -1
        with contextlib.suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        while not self._has_own_pids and (orphans := _children() - spared):
            for orphan in orphans:
                with contextlib.suppress(OSError):
                    os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)
        if "private-tmp" not in self._context.layers:
            _remove(self._context.tmp)


class ForkServer(IsolatedProcess):
    """The process that candidates are forked from."""

    def __init__(self, context: Context, limits: Limits):
        super().__init__(context, limits, lambda line, tmp: _serve_forks(line, tmp, context, limits))

    def fork(self, connection: socket.socket) -> None:
        """Fork a candidate that speaks over `connection`."""
        _send_descriptor(self.line, _FORK, connection.fileno())

    def clear(self) -> tuple[int, bool]:
        """End the program: the candidate's status as of `waitpid`, and whether it left nothing behind."""
        self.line.settimeout(_PATIENCE_S)
        try:
            self.line.send(_CLEAR)
            status, is_clean = _CLEARED.unpack(self.line.recv(_CLEARED.size))
        except (OSError, struct.error):
            return signal.SIGKILL, False
        return status, is_clean and self._has_own_pids


class TestRunner(IsolatedProcess):
    """The process that runs tests."""

    def __init__(self, context: Context, limits: Limits):
        super().__init__(context, limits, lambda line, _tmp: _run_tests(line))

    def begin(
        self, connection: socket.socket, order: runner.Order, texts: Texts, sizes: list[int], timeout_s: float
    ) -> None:
        """Have the candidate at the other end of `connection` tried; the outcome will come over the line."""
        self.line.settimeout(timeout_s)
        _send_descriptor(self.line, _FORK, connection.fileno())
        Channel(self.line).send([asdict(order), sizes])
        texts.send(Channel(self.line))


def _keep_only_line(line: int) -> None:
    """Keep no descriptor of the worker's but the line."""
    os.dup2(line, _LINE)
    os.closerange(_LINE + 1, _MOST_DESCRIPTORS)


def _live_isolated(
    context: Context, limits: Limits, live: Callable[[socket.socket, str], None], *, commands: bool
) -> None:
    """Isolation first, then `live`. Always raises `WorkerEnded`."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=_LINE)
    try:
        space = None if commands else limits.memory_bytes
        isolation.confine(context, limits, commands=commands, address_space=space)
        tmp = os.open(context.tmp, os.O_PATH) if "private-tmp" in context.layers else -1
    except OSError as error:
        line.send(str(error).encode()[: 1 << 10])
        raise WorkerEnded(0) from None
    if tmp < 0:
        line.send(b"+")
    else:
        _send_descriptor(line, b"+", tmp)
        os.close(tmp)
    live(line, context.tmp)
    raise WorkerEnded(0)


def _serve_forks(line: socket.socket, tmp: str, context: Context, limits: Limits) -> None:
    born = os.stat(tmp).st_ctime_ns
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= born:
        time.sleep(0.0005)  # any change from now on has a later time
    candidate = 0
    while True:
        command, connection = _receive_descriptor(line, 1)
        if command == _FORK:
            candidate = os.fork()
            if candidate == 0:
                _enter_as_candidate(connection, context, limits)
            os.close(connection)
        elif command == _CLEAR:
            status, num_others = _end_all(candidate)
            is_clean = not num_others and os.stat(tmp).st_ctime_ns == born
            line.send(_CLEARED.pack(status, is_clean))
        else:
            return


def _send_descriptor(line: socket.socket, message: bytes, descriptor: int) -> None:
    packed = descriptor.to_bytes(_DESCRIPTOR_SIZE, sys.byteorder)
    line.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])


def _receive_descriptor(line: socket.socket, size: int) -> tuple[bytes, int]:
    """A message, and the descriptor that came with it or -1. `socket.recv_fds` costs a fork more pages."""
    message, ancillary, _, _ = line.recvmsg(size, socket.CMSG_SPACE(_DESCRIPTOR_SIZE))
    for _, _, descriptor in ancillary:
        return message, int.from_bytes(descriptor, sys.byteorder)
    return message, -1


def _enter_as_candidate(connection: int, context: Context, limits: Limits) -> None:
    """Become a candidate. Shares no open file with the fork server, for locks and flags would stay on it."""
    _keep_only_line(connection)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.setsid()
    if os.getppid() != 1:  # else it dies with the first process of its namespace
        isolation.die_with_parent()
    isolation.limit_cpu(context, limits)
    isolation.let_be_looked_into(True)  # by the worker, which charges it for what it holds
    gc.enable()
    be_candidate(Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=_LINE)))
    raise WorkerEnded(0)


def _end_all(candidate: int) -> tuple[int, int]:
    """End every process here but this one: the candidate's status and how many others there were."""
    if os.getpid() == 1:  # of this namespace: -1 then means all others, and their orphans are ours
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
    else:
        with contextlib.suppress(OSError):
            os.kill(candidate, signal.SIGKILL)
    _, status = os.waitpid(candidate, 0)
    num_others = 0
    with contextlib.suppress(ChildProcessError):
        while os.getpid() == 1:
            os.waitpid(-1, 0)
            num_others += 1
    return status, num_others


def _run_tests(line: socket.socket) -> None:
    report = Channel(line)
    while True:
        command, connection = _receive_descriptor(line, 1)
        if not command:
            return
        message = report.receive()
        assert isinstance(message, list), "the worker sends orders"
        order, sizes = message
        source, task = map(report.receive_text, sizes)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=connection) as candidate:
            outcome = runner.judge(
                Channel(candidate),
                runner.Order(**order),
                source,
                task,
                report.send,
            )
        report.send(asdict(outcome))


def _remove(folder: str) -> None:
    """Remove a folder that a program has written, which may have locked itself."""
    import shutil  # only on machines without namespaces; every fork would pay for it

    shutil.rmtree(folder, ignore_errors=True)


def _children() -> set[int]:
    me = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
        return {int(child) for child in file.read().split()}
    return set()
