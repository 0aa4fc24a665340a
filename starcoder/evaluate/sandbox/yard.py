"""The two processes that try programs: a yard, which forks candidates, and a court, which tests them.

Each puts all walls around itself once and then serves one program after another, so that a short program
costs one fork and no namespace. They cannot reach each other. A yard never holds a text, tests or a nonce,
nor does the worker that it comes from (`Texts`), so a candidate, its child, finds none in its memory. It is
left for a new one as soon as a program left anything behind: a process, or any change of /tmp.
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
from dataclasses import replace

from starcoder.evaluate.sandbox import isolation, trial
from starcoder.evaluate.sandbox.candidate import be_candidate
from starcoder.evaluate.sandbox.isolation import Ground, WorkerEnded
from starcoder.evaluate.sandbox.verdicts import Limits
from starcoder.evaluate.sandbox.wire import Channel

_CANDIDATE, _CLEAR = b"c", b"e"
_DESCRIPTOR_SIZE = 4
_CLEARED = struct.Struct("<i?")
_PATIENCE_S = 5.0  # a yard that takes longer to end a program is ended itself
_LINE = 3  # the descriptor of the line to the other side, in every process behind walls
_MOST_DESCRIPTORS = 256
_CLOCK_REALTIME_COARSE = 5  # what files' times are taken from


class WallDown(Exception):
    """A wall does not stand; the program must not be run."""


class Texts:
    """The texts of the program on trial, passed on unread in memory that forks do not get."""

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


class Enclosure:
    """A child of this process, behind walls of its own, and the line to it."""

    def __init__(
        self,
        ground: Ground,
        limits: Limits,
        live: Callable[[socket.socket, str], None],
        *,
        commands: bool = False,
    ):
        """Start the process, in which `live` gets the other end of the line and the folder to write in.

        Raises:
            WallDown: the process could not put up all its walls.
            WorkerEnded: in that process.
        """
        self._has_own_pids = "pid-namespace" in ground.reached
        self._ground = ground
        if "private-tmp" not in ground.reached:
            self._ground = replace(ground, tmp=f"{ground.place.root}/{os.urandom(8).hex()}")
            os.mkdir(self._ground.tmp, 0o700)
        self.line, theirs = socket.socketpair()
        self.process = self._fork()
        if self.process == 0:
            self.line.detach()
            _move_in(theirs.detach())
            _live_behind_walls(self._ground, limits, live, commands=commands)
        theirs.close()
        if (hello := self.line.recv(1 << 10)) != b"+":
            self.end()
            raise WallDown(hello.decode(errors="replace") or "the process ended")

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
        with contextlib.suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        while not self._has_own_pids and (orphans := _children() - spared):
            for orphan in orphans:
                with contextlib.suppress(OSError):
                    os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)
        if "private-tmp" not in self._ground.reached:
            _remove(self._ground.tmp)


class Yard(Enclosure):
    """The process that candidates come from."""

    def __init__(self, ground: Ground, limits: Limits):
        super().__init__(ground, limits, lambda line, tmp: _keep_yard(line, tmp, limits))

    def admit(self, connection: socket.socket) -> None:
        """Fork a candidate that speaks over `connection`."""
        _order_candidate(self.line, connection)

    def clear(self) -> tuple[int, bool]:
        """End the program: the candidate's status as of `waitpid`, and whether it left nothing behind."""
        self.line.settimeout(_PATIENCE_S)
        try:
            self.line.send(_CLEAR)
            status, is_clean = _CLEARED.unpack(self.line.recv(_CLEARED.size))
        except (OSError, struct.error):
            return signal.SIGKILL, False
        return status, is_clean and self._has_own_pids


class Court(Enclosure):
    """The process that runs tests."""

    def __init__(self, ground: Ground, limits: Limits):
        super().__init__(ground, limits, lambda line, _tmp: _hold_court(line))

    def open(
        self, connection: socket.socket, task: trial.Task, texts: Texts, sizes: list[int], timeout_s: float
    ) -> None:
        """Have the candidate behind `connection` tried; the outcome will come over the line."""
        self.line.settimeout(timeout_s)
        _order_candidate(self.line, connection)
        Channel(self.line).send([[task.nonce, task.inside, task.cpu_s], sizes])
        texts.send(Channel(self.line))


def _move_in(line: int) -> None:
    """Keep nothing of the worker's but the line."""
    os.dup2(line, _LINE)
    os.closerange(_LINE + 1, _MOST_DESCRIPTORS)


def _live_behind_walls(
    ground: Ground, limits: Limits, live: Callable[[socket.socket, str], None], *, commands: bool
) -> None:
    """Walls first, then `live`. Always raises `WorkerEnded`."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=_LINE)
    try:
        space = None if commands else limits.memory_bytes
        isolation.confine(ground, limits, commands=commands, address_space=space)
    except OSError as error:
        line.send(str(error).encode()[: 1 << 10])
        raise WorkerEnded(0) from None
    line.send(b"+")
    live(line, ground.tmp)
    raise WorkerEnded(0)


def _keep_yard(line: socket.socket, tmp: str, limits: Limits) -> None:
    born = os.stat(tmp).st_ctime_ns
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= born:
        time.sleep(0.0005)  # any change from now on has a later time
    candidate = 0
    while True:
        order, connection = _next_order(line)
        if order == _CANDIDATE:
            candidate = os.fork()
            if candidate == 0:
                _enter_as_candidate(connection, limits)
            os.close(connection)
        elif order == _CLEAR:
            status, num_others = _end_all(candidate)
            is_clean = not num_others and os.stat(tmp).st_ctime_ns == born
            line.send(_CLEARED.pack(status, is_clean))
        else:
            return


def _order_candidate(line: socket.socket, connection: socket.socket) -> None:
    descriptor = connection.fileno().to_bytes(_DESCRIPTOR_SIZE, sys.byteorder)
    line.sendmsg([_CANDIDATE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])


def _next_order(line: socket.socket) -> tuple[bytes, int]:
    """The order, and the connection that came with it or -1. `socket.recv_fds` costs a fork more pages."""
    order, ancillary, _, _ = line.recvmsg(1, socket.CMSG_SPACE(_DESCRIPTOR_SIZE))
    for _, _, descriptor in ancillary:
        return order, int.from_bytes(descriptor, sys.byteorder)
    return order, -1


def _enter_as_candidate(connection: int, limits: Limits) -> None:
    """Become a candidate. Shares no open file with the yard, for locks and flags would stay on it."""
    _move_in(connection)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.setsid()
    if os.getppid() != 1:  # else it dies with the first process of its namespace
        isolation.die_with_parent()
    isolation.limit_cpu(limits)
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


def _hold_court(line: socket.socket) -> None:
    report = Channel(line)
    while True:
        order, connection = _next_order(line)
        if not order:
            return
        message = report.receive()
        assert isinstance(message, list), "the worker sends tasks"
        task, sizes = message
        source, tests = map(report.receive_text, sizes)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=connection) as candidate:
            outcome = trial.judge(Channel(candidate), trial.Task(*task), source, tests)
        report.send([outcome.kind, outcome.detail, outcome.nonce])


def _remove(folder: str) -> None:
    """Remove a folder that a program has written, which may have shut itself off."""
    import shutil  # only on machines without namespaces; every fork would pay for it

    shutil.rmtree(folder, ignore_errors=True)


def _children() -> set[int]:
    me = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
        return {int(child) for child in file.read().split()}
    return set()
