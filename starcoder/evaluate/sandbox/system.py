"""Linux calls that Python's `os` lacks, through the C library, with `OSError` for failure."""

import ctypes
import functools
import os


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def ok(result: int, what: str) -> int:
    """`result`, unless it is -1.

    Raises:
        OSError: with the call's errno and `what` as the file name.
    """
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
