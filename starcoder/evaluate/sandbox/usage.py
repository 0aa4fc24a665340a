"""What the processes of a trial use, measured by the worker: memory of all kinds, CPU time, waiting.

Memory is charged from /proc: resident pages less those shared with files, and for each open descriptor as
much as the kernel may buffer for a socket. Only if that is above the limit, proportional set sizes are read,
which count pages that processes share once. Shared memory without a file, larger buffers, datagram sockets
and larger pipes are refused by the call filter, so that nothing else holds memory.
"""

import contextlib
import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")
_FREE_DESCRIPTORS = 8  # the line to the test runner, three standard ones, and a few files
_DESCRIPTOR_BYTES = 208 << 10  # net.core.wmem_default; a pipe holds 64 KiB
_MAX_DESCRIPTORS = 128  # of a process, see `isolation`


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its parent, its CPU time and its ended children's, and how long it waited for a core."""

    number: int
    parent: int
    cpu_s: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a trial uses: the candidate's processes, and those of the test runner."""

    candidate: tuple[Process, ...]
    runner: tuple[Process, ...]

    @property
    def candidate_cpu_s(self) -> float:
        return sum(process.cpu_s for process in self.candidate)

    @property
    def runner_cpu_s(self) -> float:
        return sum(process.cpu_s for process in self.runner)

    def waited_s(self, server: int) -> float:
        """Seconds in which the candidate or the test runner could have run but no core was free.

        Of the candidate's processes the one that waited most counts, or many could save up time to sleep;
        not its fork server, whose number is `server`.
        """
        own = [process.waited_s for process in self.candidate if process.number != server]
        return max(own, default=0.0) + sum(process.waited_s for process in self.runner)


def measure(runner: int) -> Usage:
    """All descendants of this process; those of the process `runner` are the test runner's."""
    found = {process.number: process for process in _processes()}
    sides: dict[int, int] = {}

    def side(number: int) -> int:
        """The child of this process that it comes from; 0 for strangers."""
        if number not in sides:
            sides[number] = 0  # a parent that ends meanwhile ends the way up
            process = found.get(number)
            if process is not None:
                sides[number] = number if process.parent == me else side(process.parent)
        return sides[number]

    me = os.getpid()
    ours = [process for process in found.values() if side(process.number)]
    return Usage(
        tuple(process for process in ours if side(process.number) != runner),
        tuple(process for process in ours if side(process.number) == runner),
    )


def can_measure() -> bool:
    """Whether this machine's /proc has what `measure` reads."""
    return os.path.exists("/proc/self/stat") and os.path.exists("/proc/self/statm")


def memory_bytes(usage: Usage, servers: Iterable[int], limit_bytes: int, tmp: int) -> int:
    """Memory that a trial holds; exact only if it is near the limit. `tmp` is a descriptor of its /tmp or -1.

    `servers` are trusted processes, whose descriptors are not charged.
    """
    trusted = set(servers)
    held = _file_system_bytes(tmp)
    numbers = [process.number for process in (*usage.candidate, *usage.runner)]
    held += sum(_descriptor_bytes(number) for number in numbers if number not in trusted)
    private = sum(private_bytes(number) for number in numbers)
    if held + private > limit_bytes:
        private = sum(_proportional_bytes(number) for number in numbers)
    return held + private


def private_bytes(number: int) -> int:
    """Memory that a process holds by itself or shares with forks, less what it shares with files."""
    with contextlib.suppress(OSError), open(f"/proc/{number}/statm", encoding="ascii") as file:
        _, resident, shared, *_ = file.read().split()
        return (int(resident) - int(shared)) * _PAGE
    return 0


def _processes() -> Iterator[Process]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            cpu_s = sum(map(int, fields[11:15])) / _TICKS
            yield Process(int(name), int(fields[1]), cpu_s, _waited_s(name))


def _waited_s(name: str) -> float:
    with contextlib.suppress(OSError), open(f"/proc/{name}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


def _proportional_bytes(number: int) -> int:
    """A process that does not let itself be looked into is charged for all that it maps."""
    with contextlib.suppress(OSError), open(f"/proc/{number}/smaps_rollup", encoding="ascii") as file:
        sizes = {line.partition(":")[0]: line.split()[1] for line in file if " kB" in line}
        return (int(sizes["Pss_Anon"]) + int(sizes["Pss_Shmem"])) << 10
    return private_bytes(number)


def _descriptor_bytes(number: int) -> int:
    try:
        count = len(os.listdir(f"/proc/{number}/fd"))
    except FileNotFoundError:
        return 0
    except OSError:
        count = _MAX_DESCRIPTORS
    return max(0, count - _FREE_DESCRIPTORS) * _DESCRIPTOR_BYTES


def _file_system_bytes(descriptor: int) -> int:
    if descriptor < 0:
        return 0
    found = os.fstatvfs(descriptor)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
