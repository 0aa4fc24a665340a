"""The native library through ctypes: its structures, its functions, and whether it is there.

Nothing here needs torch. `csrc/starcoder.h` is the contract; the structures below mirror it.
"""

import ctypes
import functools
import hashlib
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

FLOAT32, INT8, INT4 = 1, 2, 3  # kinds of weights
ACTIVATIONS = {"gelu_tanh": 1, "gelu": 2, "silu": 3}
_NO_MEMORY, _BAD_INDEX = -1, -2


class Linear(Structure):
    """`ScLinear`: y = x W^T + bias."""

    _fields_ = [
        ("kind", c_int32),
        ("columns", c_int32),
        ("inputs", c_int32),
        ("group", c_int32),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
    ]


class Block(Structure):
    """`ScBlock`: one layer."""

    _fields_ = [
        ("norm1_weight", c_void_p),
        ("norm1_bias", c_void_p),
        ("norm2_weight", c_void_p),
        ("norm2_bias", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", Linear),
        ("out", Linear),
        ("up", Linear),
        ("down", Linear),
    ]


class Model(Structure):
    """`ScModel`: the whole network."""

    _fields_ = [
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("inner", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_size", c_int32),
        ("window", c_int32),
        ("activation", c_int32),
        ("is_gated", c_int32),
        ("norm_eps", c_float),
        ("rotary_scale", c_float),
        ("frequencies", c_void_p),
        ("embed", Linear),
        ("positions", Linear),
        ("head", Linear),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
        ("blocks", POINTER(Block)),
    ]


class Step(Structure):
    """`ScStep`: the tokens of one step and where their keys and values are."""

    _fields_ = [
        ("num_tokens", c_int32),
        ("num_segments", c_int32),
        ("num_rows", c_int32),
        ("block_size", c_int32),
        ("num_blocks", c_int32),
        ("table_stride", c_int32),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("new_lens", c_void_p),
        ("past_lens", c_void_p),
        ("tables", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("layer_stride", c_int64),
        ("rows", c_void_p),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
    ]


def abi_number() -> int:
    """A number from the hash of the C header, which setup.py compiles into the library."""
    header = (Path(__file__).parent / "csrc" / "starcoder.h").read_bytes().replace(b"\r\n", b"\n")
    return int.from_bytes(hashlib.sha256(header).digest()[:4], "big") >> 1


def check(status: int, what: str) -> None:
    """Raise what the status of a native call means.

    Raises:
        MemoryError, IndexError, RuntimeError: as `starcoder.h` says of its statuses.
    """
    if status == _NO_MEMORY:
        raise MemoryError(f"no memory for {what}")
    if status == _BAD_INDEX:
        raise IndexError(f"{what}: a token, position, row or block does not exist")
    if status < 0:
        raise RuntimeError(f"{what} failed in the native library")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, and torch does the work, where they were not built from these sources."""
    folder = Path(__file__).parent
    found = [folder / f"_native{suffix}" for suffix in reversed(EXTENSION_SUFFIXES)]
    path = next((path for path in found if path.exists()), None)
    if path is None:
        return None
    loaded = ctypes.CDLL(str(path))
    if not hasattr(loaded, "sc_abi") or loaded.sc_abi() != abi_number():
        return None  # sources were updated and not built again: calling it would corrupt memory
    for name, result, arguments in _SIGNATURES:
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


_SIGNATURES: tuple[tuple[str, object, list[object]], ...] = (
    ("sc_isa", c_char_p, [c_int32]),
    ("sc_workspace_new", c_void_p, []),
    ("sc_workspace_free", None, [c_void_p]),
    (
        "sc_linear",
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(Linear), c_int32, c_void_p, c_void_p],
    ),
    ("sc_keeps_promise", c_int32, [c_int32, POINTER(Linear)]),
    ("sc_lookup", c_int32, [POINTER(Linear), c_int32, c_void_p, c_void_p]),
    ("sc_step", c_int32, [c_void_p, c_char_p, c_int32, POINTER(Model), POINTER(Step)]),
    (
        "sc_quantize",
        c_int32,
        [
            c_char_p,
            c_int32,
            POINTER(Linear),
            c_void_p,
            c_int32,
            POINTER(c_float),
            POINTER(c_double),
            POINTER(c_double),
        ],
    ),
    ("sc_bandwidth", c_double, [c_int32, c_void_p, c_int64]),
)


def variants() -> list[str]:
    """Instruction-set variants that this processor runs, best first; empty without the library."""

    def names(native: ctypes.CDLL) -> Iterator[str]:
        index = 0
        while (name := native.sc_isa(index)) is not None:
            yield name.decode()
            index += 1

    native = library()
    return [] if native is None else list(names(native))


class Workspace:
    """Scratch memory of native calls, grown when needed and reused; one call at a time."""

    def __init__(self) -> None:
        native = library()
        assert native is not None, "callers ask `available` first"
        self._native = native
        self.handle: int | None = native.sc_workspace_new()
        if self.handle is None:
            raise MemoryError("no memory for a workspace")

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self._native.sc_workspace_free(self.handle)
