"""Messages between a candidate and the process that tests it: values as JSON, read without trusting them.

Plain values of Python and NumPy travel as copies. Anything else stays where it is and is known to the other
side by a number. What is read can be wrong but never runs code: no pickle, no marshal.
"""

import json
import socket
import struct
import types
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction

_LENGTH = struct.Struct("<I")
_MOST_BYTES = 2 << 30  # a limit of sense only: the reader's own memory is limited too
_SMALL = 1 << 62  # larger ones would be parsed digit by digit
_SAME_IN_JSON = frozenset({type(None), bool, float, str})
_NEVER_COPIED = frozenset({types.FunctionType, types.BuiltinFunctionType, type})  # only a short cut
_LEAVES = _SAME_IN_JSON | {int}
_BASES: tuple[type, ...] = (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, Decimal, Fraction,
)  # fmt: skip
_MUTABLE = (list, set, dict, bytearray)


class Channel:
    """Length-prefixed JSON documents over a socket."""

    def __init__(self, connection: socket.socket):
        self._connection = connection

    def send(self, message: object) -> None:
        """Send one document."""
        data = json.dumps(message).encode()
        self._connection.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> object:
        """The next document.

        Raises:
            EOFError: the other side is gone, or what it sends is no document.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > _MOST_BYTES:
            raise EOFError("a message too long")
        try:
            return json.loads(self._exactly(length))
        except (ValueError, RecursionError):
            raise EOFError("not a message") from None

    def send_bytes(self, data: memoryview) -> None:
        """Send bytes whose number the other side knows."""
        self._connection.sendall(data)

    def receive_text(self, size_bytes: int) -> str:
        """Text of which that many bytes were sent.

        Raises:
            EOFError: the other side is gone.
        """
        return self._exactly(size_bytes).decode("utf-8", "surrogatepass")

    def _exactly(self, count: int) -> bytearray:
        data = bytearray()
        while len(data) < count:
            try:
                part = self._connection.recv(min(count - len(data), 1 << 20))
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError("the other side is gone")
            data += part
        return data


def encode(value: object, lend: Callable[[object], object]) -> object:
    """`value` as what JSON can hold. `lend` gives the form of what cannot be copied, or raises."""
    kind = type(value)
    if kind in _SAME_IN_JSON:
        return value
    if kind in _NEVER_COPIED:
        return lend(value)
    match value:
        case int() if kind is int:
            return value if -_SMALL < value < _SMALL else {"t": "int", "v": hex(value)}
        case list() if kind is list:
            if _is_flat(value):
                return value
            if all(type(item) is tuple and _is_flat(item) for item in value):
                return {"t": "tuples", "v": value}  # JSON writes them as lists, and large answers stay fast
            return [encode(item, lend) for item in value]
        case tuple() | set() | frozenset() if kind in _BASES:
            return {"t": kind.__name__, "v": [encode(item, lend) for item in value]}
        case dict() if kind is dict:
            return {"t": "dict", "v": [[encode(k, lend), encode(v, lend)] for k, v in value.items()]}
        case bytes() | bytearray() if kind in _BASES:
            return {"t": kind.__name__, "v": value.hex()}
        case complex() if kind is complex:
            return {"t": "complex", "v": [value.real, value.imag]}
        case Decimal() | Fraction() if kind in _BASES:
            return {"t": kind.__name__, "v": str(value)}
        case range():
            return {"t": "range", "v": [hex(value.start), hex(value.stop), hex(value.step)]}
    if kind.__module__ == "numpy":
        return _encode_numpy(value, lend)
    for base in _BASES:  # a named tuple, a Counter, an IntEnum: their plain part
        if isinstance(value, base):
            return encode(_plain_part(base, value), lend)
    return lend(value)


def decode(form: object, borrow: Callable[[int], object]) -> object:
    """The value behind `form`; `borrow` gives what a number stands for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, ArithmeticError: `form` is not what `encode` makes.
    """
    if isinstance(form, list):
        return [item if type(item) in _LEAVES else decode(item, borrow) for item in form]
    if not isinstance(form, dict):
        return form
    content = form["v"]
    match form["t"]:
        case "int":
            return int(content, 16)
        case "tuple":
            return tuple(decode(item, borrow) for item in content)
        case "tuples":
            return [tuple(item) for item in content]
        case "set":
            return {decode(item, borrow) for item in content}
        case "frozenset":
            return frozenset(decode(item, borrow) for item in content)
        case "dict":
            return {decode(key, borrow): decode(item, borrow) for key, item in content}
        case "bytes":
            return bytes.fromhex(content)
        case "bytearray":
            return bytearray.fromhex(content)
        case "complex":
            real, imaginary = content
            return complex(real, imaginary)
        case "Decimal":
            return Decimal(content)
        case "Fraction":
            return Fraction(content)
        case "range":
            return range(*(int(bound, 16) for bound in content))
        case "array":
            return _decode_numpy(form, borrow)
        case "lent":
            return borrow(int(content))
    raise ValueError("no such type")


def _is_flat(items: Iterable[object]) -> bool:
    return all(
        type(item) in _SAME_IN_JSON or (type(item) is int and -_SMALL < item < _SMALL) for item in items
    )


def update(old: object, new: object) -> None:
    """Make the mutable `old` equal to `new`, which is of the same type."""
    if isinstance(old, list | bytearray) and type(new) is type(old):
        old[:] = new
    elif isinstance(old, set | dict) and type(new) is type(old):
        old.clear()
        old.update(new)


def is_mutable(value: object) -> bool:
    """Whether a callee can change `value` and `update` can repeat that."""
    return type(value) in _MUTABLE


def _plain_part(base: type, value: object) -> object:
    if base is bool or base is int:
        return int.__index__(value)  # type: ignore[arg-type]
    if base is float:
        return float.__float__(value)  # type: ignore[arg-type]
    if base is str:
        return str.__str__(value)
    if base is dict:
        return dict(dict.items(value))  # type: ignore[arg-type]
    return base(value)


def _encode_numpy(value: object, lend: Callable[[object], object]) -> object:
    import numpy

    if not isinstance(value, numpy.ndarray | numpy.generic) or value.dtype.kind not in "biufc":
        return lend(value)
    shape = list(value.shape) if isinstance(value, numpy.ndarray) else None
    items = [encode(item, lend) for item in value.ravel().tolist()]
    return {"t": "array", "d": value.dtype.str, "s": shape, "v": items}


def _decode_numpy(form: dict[str, object], borrow: Callable[[int], object]) -> object:
    import numpy

    dtype = numpy.dtype(str(form["d"]))
    if dtype.kind not in "biufc":
        raise ValueError("no such type")
    flat = numpy.array(decode(form["v"], borrow), dtype)
    return flat[0] if form["s"] is None else flat.reshape(form["s"])  # type: ignore[call-overload]
