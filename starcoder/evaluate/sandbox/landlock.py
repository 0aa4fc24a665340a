"""Landlock: file access by permission lists that the process itself puts on, and can never take off."""

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

READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
WRITE: Final = (1 << 15) - 1


def version() -> int:
    """The kernel's Landlock interface, 0 without one."""
    return max(0, int(libc().syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict(rights: Mapping[str, int], interface: int) -> None:
    """Shut every file off but those under the keys of `rights`, and TCP and foreign signals where possible.

    Needs no_new_privs. `interface` is what `version` said.

    Raises:
        OSError: a path is not there or the kernel refuses.
    """
    handled = WRITE if interface >= 3 else (1 << (12 + interface)) - 1
    attributes = struct.pack("QQQ", handled, 3 if interface >= 4 else 0, 3 if interface >= 6 else 0)
    size = 24 if interface >= 6 else 16 if interface >= 4 else 8
    rules = ok(libc().syscall(_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock")
    for path, allowed in rights.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= handled if os.path.isdir(path) else handled & _FILE_RIGHTS
        ok(libc().syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0), path)
        os.close(place)
    ok(libc().syscall(_RESTRICT, rules, 0), "landlock")
    os.close(rules)
