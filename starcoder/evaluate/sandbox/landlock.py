"""Landlock: file access by permission lists that a process puts on itself and can never take off."""

import ctypes
import os
import struct
from collections.abc import Mapping
from typing import Final

from starcoder.evaluate.sandbox.system import libc, ok

# Source: include/uapi/linux/landlock.h of Linux 6.12.
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

SIGNALS_SINCE: Final = 6  # the interface that can refuse signals to other processes
READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
WRITE: Final = (1 << 15) - 1


def version() -> int:
    """The kernel's Landlock interface, 0 without one."""
    return max(0, int(libc().syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict(rights: Mapping[str, int], interface: int) -> None:
    """Refuse every file but those under the keys of `rights`, and TCP and signals to others where possible.

    Needs no_new_privs. `interface` is what `version` said.

    Raises:
        OSError: a path does not exist or the kernel refuses.
    """
    handled = WRITE if interface >= 3 else (1 << (12 + interface)) - 1
    scopes = 3 if interface >= SIGNALS_SINCE else 0
    attributes = struct.pack("QQQ", handled, 3 if interface >= 4 else 0, scopes)
    size = 24 if interface >= SIGNALS_SINCE else 16 if interface >= 4 else 8
    rules = ok(libc().syscall(_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock")
    for path, allowed in rights.items():
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= handled if os.path.isdir(path) else handled & _FILE_RIGHTS
        ok(libc().syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0), path)
        os.close(descriptor)
    ok(libc().syscall(_RESTRICT, rules, 0), "landlock")
    os.close(rules)
