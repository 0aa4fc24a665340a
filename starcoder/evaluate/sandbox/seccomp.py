"""The system call filter: refuses what no program under test needs and what exploits of the kernel use.

A list of refusals, not of permissions: tool-chains of six languages must continue to work. Most of what a
refused call could reach is refused by another layer too. Memory that nobody is charged for (shared memory
without a file, raised buffers of sockets and pipes) is refused here alone.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator, Sequence

from starcoder.evaluate.sandbox.system import libc, ok

# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.12.
_NUMBERS_X86_64 = {
    "mmap": 9, "ioctl": 16, "setsockopt": 54, "fcntl": 72, "kill": 62, "tkill": 200, "tgkill": 234,
    "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "shmget": 29, "socket": 41, "socketpair": 53, "clone": 56, "semget": 64, "msgget": 68,
    "ptrace": 101, "syslog": 103, "ustat": 136, "_sysctl": 156, "modify_ldt": 154, "pivot_root": 155,
    "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172,
    "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179, "lookup_dcookie": 212,
    "clock_settime": 227, "mq_open": 240, "kexec_load": 246, "add_key": 248, "request_key": 249,
    "keyctl": 250, "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300,
    "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "seccomp": 317,
    "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "setpriority": 141,
    "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203, "ioprio_set": 251,
    "migrate_pages": 256, "sched_setattr": 314,
}  # fmt: skip
_NUMBERS_AARCH64 = {
    "mmap": 222, "setsockopt": 208, "fcntl": 25, "kill": 129, "tkill": 130, "tgkill": 131,
    "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
    "ioctl": 29, "shmget": 194, "socket": 198, "socketpair": 199, "clone": 220, "semget": 190, "msgget": 186,
    "ptrace": 117, "syslog": 116, "pivot_root": 41, "adjtimex": 171, "chroot": 51, "acct": 89,
    "settimeofday": 170, "mount": 40, "umount2": 39, "swapon": 224, "swapoff": 225, "reboot": 142,
    "sethostname": 161, "setdomainname": 162, "init_module": 105, "delete_module": 106, "quotactl": 60,
    "lookup_dcookie": 18, "clock_settime": 112, "mq_open": 180, "kexec_load": 104, "add_key": 217,
    "request_key": 218, "keyctl": 219, "unshare": 97, "move_pages": 239, "perf_event_open": 241,
    "fanotify_init": 262, "prlimit64": 261, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "finit_module": 273, "seccomp": 277, "memfd_create": 279, "kexec_file_load": 294, "bpf": 280,
    "userfaultfd": 282, "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119,
    "sched_setaffinity": 122, "ioprio_set": 30, "migrate_pages": 238, "sched_setattr": 274,
}  # fmt: skip
_NUMBERS_EVERYWHERE = {  # since Linux 5.1 all machines share numbers
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435,
    "pidfd_send_signal": 424,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
    "process_mrelease": 448, "statmount": 457, "listmount": 458, "open_tree_attr": 467,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _NUMBERS_X86_64), "aarch64": (0xC00000B7, _NUMBERS_AARCH64)}

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
_REFUSED_IOCTLS = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
_AF_UNIX, _SOCK_DGRAM, _SOCK_TYPE = 1, 2, 0xF
_MAP_ANONYMOUS, _MAP_SHARED = 0x20, 1
_SOL_SOCKET, _BUFFER_SIZES = 1, (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF, and both with FORCE
_F_SETPIPE_SZ, _SIGNAL_ONESELF_LATER = 1031, (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_SIGNALS = frozenset(("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"))
_OF_PROCESSES = {"setpriority": 0, "ioprio_set": 1}  # what their first argument must be for one process
_ONLY_ONESELF = (
    "prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr",
    "migrate_pages",
)  # fmt: skip
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def machine_is_known() -> bool:
    """Whether there is a table of system calls for this machine."""
    return platform.machine() in _MACHINES


def program(*, refuse_signals: bool) -> bytes:
    """The filter as classic BPF, for `install`.

    `refuse_signals` is for machines where nothing else keeps a program from ending other processes: it then
    cannot signal itself either.
    """
    arch, numbers = _MACHINES[platform.machine()]
    code = [
        _op(_LOAD, _ARCH_AT), _op(_EQUAL, arch, 1, 0), _op(_RETURN, _KILL),
        _op(_LOAD, _NUMBER_AT), _op(_AT_LEAST, _X32_BIT, 0, 1), _op(_RETURN, _ERRNO | errno.ENOSYS),
    ]  # fmt: skip
    for name, number in {**numbers, **_NUMBERS_EVERYWHERE}.items():
        if name in _SIGNALS and not refuse_signals:
            continue
        body = list(_refusal(name))
        code += [_op(_EQUAL, number, 0, len(body)), *body]
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def install(code: bytes) -> None:
    """Put the filter over this process and all it starts, for good. Needs no_new_privs.

    Raises:
        OSError: the kernel refuses filters.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    ok(libc().prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0), "seccomp")


def _refusal(name: str) -> Iterator[bytes]:
    """What follows once the number matched. Each body ends in a return, so that bodies follow each other."""
    refuse, allow = _op(_RETURN, _ERRNO | errno.EPERM), _op(_RETURN, _ALLOW)
    if name in ("clone3", "memfd_create", "memfd_secret", "io_uring_setup"):
        yield _op(_RETURN, _ERRNO | errno.ENOSYS)  # callers then use the older call
    elif name == "clone":
        yield from (_op(_LOAD, _ARGUMENTS_AT), _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1), refuse, allow)
    elif name in _OF_PROCESSES:  # a process that lives on must not be slowed down
        yield from (_op(_LOAD, _ARGUMENTS_AT), _op(_EQUAL, _OF_PROCESSES[name], 1, 0), refuse)
        yield from (_op(_LOAD, _ARGUMENTS_AT + 8), _op(_EQUAL, 0, 0, 1), allow, refuse)
    elif name in _ONLY_ONESELF:  # one's own limits may be read and lowered
        yield from (_op(_LOAD, _ARGUMENTS_AT), _op(_EQUAL, 0, 0, 1), allow, refuse)
    elif name == "socketpair":  # asyncio and multiprocessing need local ones, of which datagrams queue up
        yield from (_op(_LOAD, _ARGUMENTS_AT), _op(_EQUAL, _AF_UNIX, 1, 0), refuse)
        yield from (_op(_LOAD, _ARGUMENTS_AT + 8), _op(_AND, _SOCK_TYPE))
        yield from (_op(_EQUAL, _SOCK_DGRAM, 0, 1), refuse, allow)
    elif name == "mmap":
        no_memory = _op(_RETURN, _ERRNO | errno.ENOMEM)
        yield from (_op(_LOAD, _ARGUMENTS_AT + 24), _op(_ANY_BIT, _MAP_ANONYMOUS, 1, 0), allow)
        yield from (_op(_ANY_BIT, _MAP_SHARED, 1, 0), allow, no_memory)
    elif name == "setsockopt":
        yield from (_op(_LOAD, _ARGUMENTS_AT + 8), _op(_EQUAL, _SOL_SOCKET, 1, 0), allow)
        yield from _unless_among(_BUFFER_SIZES, _ARGUMENTS_AT + 16)
    elif name == "fcntl":
        yield from _unless_among((_F_SETPIPE_SZ, *_SIGNAL_ONESELF_LATER), _ARGUMENTS_AT + 8)
    elif name == "ioctl":
        yield from _unless_among(_REFUSED_IOCTLS, _ARGUMENTS_AT + 8)
    else:
        yield refuse


def _unless_among(values: Sequence[int], argument_at: int) -> Iterator[bytes]:
    """Refuse the call if an argument is one of `values`."""
    yield _op(_LOAD, argument_at)
    for left, value in reversed(list(enumerate(values))):
        yield _op(_EQUAL, value, left + 1, 0)
    yield from (_op(_RETURN, _ALLOW), _op(_RETURN, _ERRNO | errno.EPERM))


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
