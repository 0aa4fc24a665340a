"""The walls around a program: namespaces, a read-only root, Landlock, the call filter, resource limits.

A worker process builds what all its programs share (`enter_worker`); the processes that it has programs
tried in get namespaces, a /tmp and limits of their own (`confine`). Each wall has a name, and what a machine
does not allow is left out and reported by that name. Runs in the worker processes only: it changes the
process that calls it.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starcoder.evaluate.sandbox import landlock, seccomp
from starcoder.evaluate.sandbox.system import libc, ok
from starcoder.evaluate.sandbox.verdicts import Limits

WALLS = (
    "user-namespace", "pid-namespace", "mount-namespace", "net-namespace", "ipc-namespace", "read-only-root",
    "private-tmp", "landlock", "seccomp", "no-capabilities", "rlimits", "process-count", "memory-sum",
)  # fmt: skip
_NAMESPACES = frozenset(wall for wall in WALLS if wall.endswith("-namespace"))

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITY_VERSION = 0x20080522

_NOBODY = 65534  # who programs are when the sandbox runs as root
_INSIDE = 1000  # who they believe to be
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DESCRIPTORS = 128
_TMP_FILES = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs live: an empty folder for the root, what they may read or import, walls left out."""

    root: str
    readable: tuple[str, ...]
    packages: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ground:
    """What a worker has built and each of its programs stands on."""

    place: Place
    reached: frozenset[str]
    landlock: int
    filter: bytes
    tmp: str
    neighbours: int  # processes that count against the programs' limit though they are not theirs


def enter_worker(place: Place) -> Ground:
    """Build the worker's walls around this process. Returns in a child of it where namespaces can be had.

    Raises:
        OSError: a wall that the machine seemed to allow could not be finished.
    """
    reached: set[str] = set()
    if not place.without & _NAMESPACES and _enter_namespaces(place):
        reached |= _NAMESPACES | {"read-only-root", "private-tmp", "process-count"}
        if os.path.exists("/proc/1/statm"):
            reached.add("memory-sum")
    interface = 0 if "landlock" in place.without else landlock.version()
    use_filter = "seccomp" not in place.without and seccomp.machine_is_known()
    reached |= {"rlimits", "no-capabilities"}
    reached |= {"landlock"} if interface else set()
    reached |= {"seccomp"} if use_filter else set()
    tmp = "/tmp" if "private-tmp" in reached else place.root
    neighbours = 0
    if "process-count" not in reached:
        neighbours = _processes_of_user()
        reached |= {"process-count"} if os.geteuid() else set()  # the kernel does not count root's
    ok(libc().prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    return Ground(
        place, frozenset(reached), interface, seccomp.program() if use_filter else b"", tmp, neighbours
    )


def confine(ground: Ground, limits: Limits, *, commands: bool, address_space: int | None) -> None:
    """Put every wall around this process, a fresh child of the worker, and all that it will fork.

    Its forks limit their CPU time themselves (`limit_cpu`), except where they are `commands`.

    Args:
        commands: Whether it will start other programs, which need /proc and an executable /tmp.
        address_space: Bytes of address space for each process; None for run times that reserve much.

    Raises:
        OSError: a wall does not stand; the program must not be run.
    """
    die_with_parent()
    if ground.reached >= _NAMESPACES:
        _own_namespaces(limits, commands=commands)
    else:
        os.setsid()
    os.chdir(ground.tmp)
    ok(libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if ground.landlock:
        landlock.restrict(dict(_rights(ground)), ground.landlock)
    _drop_capabilities()
    _limit(ground, limits, address_space)
    if commands:
        limit_cpu(limits)
    ok(libc().prctl(_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")  # nothing of the same user may look in
    if ground.filter:
        seccomp.install(ground.filter)


def _processes_of_user() -> int:
    """Threads that count against this user's limit now."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{name}/task"))
    return total


def next_program_in_own_pids() -> None:
    """Make the next child the first process of a new pid namespace."""
    ok(libc().unshare(_NEWPID), "unshare")


def later_children_in(own_pids: int) -> None:
    """Undo `next_program_in_own_pids`, given a descriptor of this process's /proc/self/ns/pid."""
    ok(libc().setns(own_pids, _NEWPID), "setns")


def _enter_namespaces(place: Place) -> bool:
    """Go into new namespaces with nothing in them but `place`; False where the machine forbids it."""
    if not _may_unshare():
        return False
    uid = os.geteuid()
    if uid == 0:
        ok(libc().unshare(_NEWNS), "unshare")
        _build_root(place)  # as root, for a user may not be able to reach the readable paths
    _unshare_all()
    child = os.fork()
    if child:
        _outlive(child)
    die_with_parent()
    if uid != 0:
        _build_root(place)
    _enter_root(place.root)
    return True


def _may_unshare() -> bool:
    """Try it in a child, for there is no way back."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with contextlib.suppress(OSError):
        if os.geteuid() == 0:
            ok(libc().unshare(_NEWNS), "unshare")
        _unshare_all()
        raise WorkerEnded(0)
    raise WorkerEnded(1)


def _unshare_all() -> None:
    """New namespaces of every kind. Root becomes nobody first: its files must not be the programs' own."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        uid = gid = _NOBODY
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        ok(libc().prctl(_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # or /proc/self would be root's
    ok(libc().unshare(_NEWUSER | _NEWPID | _NEWNS | _NEWIPC | _NEWNET | _NEWUTS | _NEWCGROUP), "unshare")
    _map_user(os.open("/proc/self", os.O_PATH), 0, uid, gid)


class WorkerEnded(Exception):
    """Raised in a process that has done its part and must exit, with its exit code."""


def _outlive(child: int) -> None:
    for descriptor in (0, 1):  # the worker's end must be seen as the end of its pipes
        os.close(descriptor)
    os.waitpid(child, 0)
    raise WorkerEnded(0)


def _build_root(place: Place) -> None:
    """A small read-only tree on `place.root`: the readable paths, five devices, /tmp and /proc."""
    root = place.root
    _mount("none", "/", None, _PRIVATE | _REC)
    _mount("tmpfs", root, "tmpfs", _NOSUID, "size=1m,mode=755")
    for folder in ("tmp", "proc", "dev", "etc"):
        os.mkdir(f"{root}/{folder}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for name, text in _ETC.items():
        with open(f"{root}/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)
    for path in (*place.readable, *(f"/dev/{name}" for name in _DEVICES)):
        _show(path, root)
    for path, here in zip(place.packages, package_paths(place, in_root=True), strict=True):
        os.makedirs(root + here)
        _mount(path, root + here, None, _BIND | _REC)
    read_only = (_RDONLY | _NOSUID).to_bytes(8, "little") + bytes(24)
    ok(libc().syscall(_MOUNT_SETATTR, _AT_FDCWD, root.encode(), _AT_RECURSIVE, read_only, 32), "read-only")


def package_paths(place: Place, *, in_root: bool) -> list[str]:
    """Where programs find the folders of packages: in the root away from /tmp, which hides the host's."""
    return [f"/packages/{i}" if in_root else path for i, path in enumerate(place.packages)]


_ETC = {
    "passwd": "user:x:1000:1000::/tmp:/bin/sh\n",
    "group": "user:x:1000:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n",
}


def _show(path: str, root: str) -> None:
    """Make the host's `path` visible in the new root; links stay links."""
    here = root + path
    if os.path.lexists(here):
        return
    os.makedirs(os.path.dirname(here), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), here)
    elif os.path.isdir(path):
        os.mkdir(here)
        _mount(path, here, None, _BIND | _REC)
    elif os.path.exists(path):
        os.close(os.open(here, os.O_CREAT | os.O_WRONLY))
        _mount(path, here, None, _BIND)


def _enter_root(root: str) -> None:
    with contextlib.suppress(PermissionError):  # some containers hide parts of /proc and forbid a new one
        _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    if not os.path.exists(f"{root}/proc/self"):
        _mount("/proc", f"{root}/proc", None, _BIND | _REC)
    _mount(root, root, None, _BIND | _REC)  # mounts made by another user are locked, a copy's top is not
    os.chdir(root)
    ok(libc().syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    ok(libc().umount2(b".", _DETACH), "umount")
    os.chdir("/")


def _own_namespaces(limits: Limits, *, commands: bool) -> None:
    """Namespaces of this program alone; the user namespace last, so that it has no say in the others."""
    me = os.open("/proc/self", os.O_PATH)
    ok(libc().unshare(_NEWNS | _NEWNET | _NEWIPC | _NEWUTS), "unshare")
    tmp = _NOSUID | _NODEV | (0 if commands else _NOEXEC)
    _mount("tmpfs", "/tmp", "tmpfs", tmp, f"size={2 * limits.file_bytes},nr_inodes={_TMP_FILES},mode=777")
    if commands:
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    else:
        _mount("tmpfs", "/proc", "tmpfs", _RDONLY, "size=4k,nr_inodes=1")
    ok(libc().unshare(_NEWUSER), "unshare")
    _map_user(me, _INSIDE, 0, 0)


def _map_user(me: int, inside: int, uid: int, gid: int) -> None:
    """One user in this process's new user namespace. Closes `me`, a descriptor of its /proc/self."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        file = os.open(name, os.O_WRONLY, dir_fd=me)
        os.write(file, text.encode())
        os.close(file)
    os.close(me)


def _rights(ground: Ground) -> Iterator[tuple[str, int]]:
    if "read-only-root" in ground.reached:
        yield "/", landlock.READ
    else:
        for path in (*ground.place.readable, *ground.place.packages):
            if os.path.exists(path):
                yield path, landlock.READ
    for name in _DEVICES:
        yield f"/dev/{name}", landlock.READ | landlock.WRITE
    yield ground.tmp, landlock.READ | landlock.WRITE


def _drop_capabilities() -> None:
    header = _CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4)
    ok(libc().capset(header, bytes(24)), "capset")


def _limit(ground: Ground, limits: Limits, address_space: int | None) -> None:
    for kind, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, limits.processes + ground.neighbours),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        *(() if address_space is None else ((resource.RLIMIT_AS, address_space),)),
    ):
        _, hard = resource.getrlimit(kind)
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))


def limit_cpu(limits: Limits) -> None:
    """Limit the CPU time of this process and each of its children."""
    # The signal at the soft limit names the cause; one second later nothing can ignore the end.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))


def die_with_parent() -> None:
    """Have this process killed when the one that forked it ends."""
    ok(libc().prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = None if kind is None else kind.encode()
    ok(libc().mount(source.encode(), target.encode(), encoded, flags, data.encode() or None), target)


def resident_bytes(processes: Sequence[int]) -> int:
    """Memory that these processes hold by themselves, less what they share with files."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            with open(f"/proc/{process}/statm", encoding="ascii") as file:
                _, resident, shared, *_ = file.read().split()
            total += (int(resident) - int(shared)) * resource.getpagesize()
    return total
