"""int4, int8 and float32 kernels for the CPU, built at install where there is a C++ compiler.

`native` loads them, `packed` is the layout of quantized weights, `ops` are the torch operators with
their fallback, and `step` runs a whole network in one call.
"""

from starcoder.kernels.native import variants

__all__ = ["available", "describe"]


def available() -> bool:
    """Whether the native kernels were built; if not, plain torch does the same work, several times slower."""
    return bool(variants())


def describe() -> str:
    """The instruction set in use, for a person: `avx2 (also portable)`, or why there is none."""
    names = variants()
    if not names:
        return "none: not built here, or from older sources; install again where g++ or clang++ is found"
    best, *others = names
    return f"{best} (also {', '.join(others)})" if others else best
