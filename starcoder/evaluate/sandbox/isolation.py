"""The isolation around a program: namespaces, a read-only root, Landlock, the call filter, resource limits.

A worker builds what all its programs share (`enter_worker`); the processes that it has programs tried in get
namespaces, a /tmp and limits of their own (`confine`). Each layer has a name, and what a machine does not
allow is left out and reported by that name (`verdicts.GUARANTEES` says what depends on it). Runs in the
worker processes only: it changes the process that calls it.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from starcoder.evaluate.sandbox import landlock, seccomp, usage
from starcoder.evaluate.sandbox.system import libc, ok
from starcoder.evaluate.sandbox.verdicts import LAYERS, Limits

_NAMESPACES = frozenset(layer for layer in LAYERS if layer.endswith("-namespace"))

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_DETACH, _NOATIME = 2, 1024
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITY_VERSION = 0x20080522

_NOBODY = 65534  # who programs are when the sandbox runs as root
_INSIDE = 1000  # who they believe to be
_DEVICES = ("null", "full", "random", "urandom")  # zero, mapped, is memory that nobody is charged for
_DESCRIPTORS = 128
_TMP_FILES = 4096
_LAST_RESORT_S = 3600


@dataclass(frozen=True, slots=True)
class Root:
    """What programs see: an empty folder for the root, what they may read or import; layers to leave out."""

    folder: str
    readable: tuple[str, ...]
    packages: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Context:
    """What a worker has built for all its programs."""

    root: Root
    layers: frozenset[str]
    landlock: int
    filter: bytes
    tmp: str
    num_others: int  # processes that count against the programs' limit though they are not theirs


def enter_worker(root: Root) -> Context:
    """Isolate this process. Returns in a child of it where namespaces can be had.

    Raises:
        OSError: a layer that the machine seemed to allow could not be finished.
    """
    layers: set[str] = {"rlimits", "no-capabilities"}
    if not root.without & _NAMESPACES and _enter_namespaces(root):
        layers |= _NAMESPACES | {"read-only-root", "private-tmp", "process-count"}
    if "usage-watch" not in root.without and usage.can_measure():
        layers.add("usage-watch")
    interface = 0 if "landlock" in root.without else landlock.version()
    if "signal-scope" in root.without:
        interface = min(interface, landlock.SIGNALS_SINCE - 1)
    layers |= {"landlock"} if interface else set()
    layers |= {"signal-scope"} if interface >= landlock.SIGNALS_SINCE else set()
    layers |= {"seccomp"} if "seccomp" not in root.without and seccomp.machine_is_known() else set()
    refuse_signals = "seccomp" in layers and not layers & {"pid-namespace", "signal-scope"}
    layers |= {"no-signals"} if refuse_signals else set()
    num_others = 0
    if "process-count" not in layers:
        num_others = _processes_of_user()
        layers |= {"process-count"} if os.geteuid() else set()  # the kernel does not count root's
    ok(libc().prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    code = seccomp.program(refuse_signals=refuse_signals) if "seccomp" in layers else b""
    tmp = "/tmp" if "private-tmp" in layers else root.folder
    return Context(root, frozenset(layers), interface, code, tmp, num_others)


def confine(context: Context, limits: Limits, *, commands: bool, address_space: int | None) -> None:
    """Isolate this process, a fresh child of the worker, and all that it will fork.

    Its forks limit their CPU time themselves (`limit_cpu`), except where they are `commands`.

    Args:
        commands: Whether it will start other programs, which need /proc and an executable /tmp.
        address_space: Bytes of address space for each process; None for run times that reserve much.

    Raises:
        OSError: a layer could not be put on; the program must not be run.
    """
    die_with_parent()
    if context.layers >= _NAMESPACES:
        _own_namespaces(limits, commands=commands)
    else:
        os.setsid()
    os.chdir(context.tmp)
    ok(libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if context.landlock:
        landlock.restrict(dict(_rights(context)), context.landlock)
    _drop_capabilities()
    _limit(context, limits, address_space)
    if commands:
        limit_cpu(context, limits)
    let_be_looked_into(False)  # by anything of the same user
    if context.filter:
        seccomp.install(context.filter)


def let_be_looked_into(is_allowed: bool) -> None:
    """Whether processes of the same user may read this one's /proc entries."""
    ok(libc().prctl(_SET_DUMPABLE, int(is_allowed), 0, 0, 0), "dumpable")


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


def _enter_namespaces(root: Root) -> bool:
    """Go into new namespaces with nothing in them but `root`; False where the machine forbids it."""
    if not _may_unshare():
        return False
    uid = os.geteuid()
    if uid == 0:
        ok(libc().unshare(_NEWNS), "unshare")
        _build_root(root)  # as root, for a user may not be able to reach the readable paths
    _unshare_all()
    child = os.fork()
    if child:
        _outlive(child)
    die_with_parent()
    if uid != 0:
        _build_root(root)
    _enter_root(root.folder)
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


def _build_root(root: Root) -> None:
    """A small read-only tree on the folder: the readable paths, four devices, /tmp and /proc."""
    top = root.folder
    _mount("none", "/", None, _PRIVATE | _REC)
    _mount("tmpfs", top, "tmpfs", _NOSUID, "size=1m,mode=755")
    for folder in ("tmp", "proc", "dev", "etc"):
        os.mkdir(f"{top}/{folder}")
    os.symlink("/proc/self/fd", f"{top}/dev/fd")
    for name, text in _ETC.items():
        with open(f"{top}/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)
    for path in (*root.readable, *(f"/dev/{name}" for name in _DEVICES)):
        _show(path, top)
    for path, here in zip(root.packages, package_paths(root, in_root=True), strict=True):
        os.makedirs(top + here)
        _mount(path, top + here, None, _BIND | _REC)
    read_only = (_RDONLY | _NOSUID).to_bytes(8, "little") + bytes(24)
    ok(libc().syscall(_MOUNT_SETATTR, _AT_FDCWD, top.encode(), _AT_RECURSIVE, read_only, 32), "read-only")


def package_paths(root: Root, *, in_root: bool) -> list[str]:
    """Where programs find the folders of packages: in the root away from /tmp, which hides the host's."""
    return [f"/packages/{i}" if in_root else path for i, path in enumerate(root.packages)]


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
    # Without times of access: they would tell a program of one before it.
    tmp = _NOSUID | _NODEV | _NOATIME | (0 if commands else _NOEXEC)
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


def _rights(context: Context) -> Iterator[tuple[str, int]]:
    if "read-only-root" in context.layers:
        yield "/", landlock.READ
    else:
        for path in (*context.root.readable, *context.root.packages):
            if os.path.exists(path):
                yield path, landlock.READ
    for name in _DEVICES:
        yield f"/dev/{name}", landlock.READ | landlock.WRITE
    yield context.tmp, landlock.READ | landlock.WRITE


def _drop_capabilities() -> None:
    header = _CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4)
    ok(libc().capset(header, bytes(24)), "capset")


def _limit(context: Context, limits: Limits, address_space: int | None) -> None:
    for kind, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, limits.processes + context.num_others),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        *(() if address_space is None else ((resource.RLIMIT_AS, address_space),)),
    ):
        _, hard = resource.getrlimit(kind)
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))


def limit_cpu(context: Context, limits: Limits) -> None:
    """Limit the CPU time of this process and each of its children.

    Where the worker watches, it decides, for all processes together; this is then the last resort.
    """
    seconds = _LAST_RESORT_S if "usage-watch" in context.layers else limits.cpu_s
    # The signal at the soft limit names the cause; one second later nothing can ignore the end.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def die_with_parent() -> None:
    """Have this process killed when the one that forked it ends."""
    ok(libc().prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = None if kind is None else kind.encode()
    ok(libc().mount(source.encode(), target.encode(), encoded, flags, data.encode() or None), target)
