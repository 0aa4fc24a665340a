"""The schema of what crosses the line between a candidate and the test runner: every form of a value, once.

A message is one JSON document. A value in it is null, true, false, a number, a text, a list of values, or an
object with one key, the name of a form (`_FORMS`), and that form's content. Reading builds new objects of
fixed types and checks every part: no pickle, no lookup by name, no call of anything that was sent. What does
not match raises `Malformed`.

Things that are not data travel as `{"object": number}`: an opaque reference that only the sender understands.
"""

import datetime
import json
import math
import re
import socket
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 1 << 30
_SMALL = 1 << 62  # larger integers would be parsed digit by digit
_SAME_IN_JSON = frozenset({type(None), bool, float, str})
_LEAVES = _SAME_IN_JSON | {int}
_FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType})
_ITERATORS: Final = frozenset(
    map(type, (iter([]), iter(()), iter({}), iter({}.values()), iter({}.items()), iter(set()), iter(""),
               iter(b""), iter(range(0)), reversed([]), (_ for _ in ())))
) | {map, filter, zip, enumerate, reversed}  # fmt: skip
_TYPES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range,
        type(None), Decimal, Fraction, datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
        deque, Counter, OrderedDict, defaultdict,
    )
}  # fmt: skip
"""The types that a value may name, as data: `type(x)` compares with them, nothing else."""
_TYPE_NAMES: Final = {kind: name for name, kind in _TYPES.items()}
_FACTORIES = frozenset({"int", "float", "str", "list", "dict", "set", "tuple", "bool"})
_ARRAY_KINDS = "biufcUS"
_MAX_FIELDS = 64


class Malformed(BaseException):
    """What arrived does not match the schema. No `except Exception` of a test catches it."""


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
            EOFError: the other side has gone.
            Malformed: what it sent is not a document.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > _MAX_BYTES:
            raise Malformed("a message too long")
        try:
            return json.loads(self._exactly(length))
        except (ValueError, RecursionError):
            raise Malformed("not a JSON document") from None

    def send_bytes(self, data: memoryview) -> None:
        """Send bytes whose number the other side knows."""
        self._connection.sendall(data)

    def receive_text(self, size_bytes: int) -> str:
        """Text of which that many bytes were sent.

        Raises:
            EOFError: the other side has gone.
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
                raise EOFError("the other side has gone")
            data += part
        return data


def encode(value: object, lend: Callable[[object, bool], int]) -> object:
    """`value` in the schema's form.

    `lend(thing, is_iterator)` returns the number that stands for a thing that is not data, or raises.
    """
    kind = type(value)
    if kind in _SAME_IN_JSON:
        return value
    if kind is int:
        assert isinstance(value, int)
        return value if -_SMALL < value < _SMALL else {"int": hex(value)}
    if kind in _FUNCTIONS:
        return {"object": lend(value, False)}
    if kind is list:
        return _encode_list(value, lend)  # type: ignore[arg-type]
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, lend)
    if kind in _ITERATORS:
        return {"iterator": lend(value, True)}
    if kind is type:
        name = _TYPE_NAMES.get(value)  # type: ignore[call-overload]
        return {"object": lend(value, False)} if name is None else {"type": name}
    return _encode_other(value, lend)


def plain(value: object) -> str:
    """`value` as JSON in the schema's form.

    Raises:
        ValueError: it is not data.
    """
    return json.dumps(encode(value, _refuse))


def _refuse(thing: object, is_iterator: bool) -> int:
    raise ValueError(f"{type(thing).__name__} is not data")


def _encode_list(items: list[object], lend: Callable[[object, bool], int]) -> object:
    if _is_flat(items):
        return items
    if all(type(item) is tuple and _is_flat(item) for item in items):
        return {"tuples": items}  # JSON writes them as lists, and large answers stay fast
    return [encode(item, lend) for item in items]


def _encode_other(value: object, lend: Callable[[object, bool], int]) -> object:
    """A subclass: the plain part of one of Python's own types, or a reference."""
    if type(value).__module__ == "numpy":
        return _encode_numpy(value, lend)
    fields = getattr(type(value), "_fields", None)
    if isinstance(value, tuple) and isinstance(fields, tuple) and len(fields) == tuple.__len__(value):
        names = [name for name in fields if type(name) is str]
        if len(names) == len(fields) and len(set(names)) == len(names) and all(map(_is_field, names)):
            return {"record": [names, [encode(item, lend) for item in tuple.__iter__(value)]]}
    for base, plain in _PLAIN.items():
        if isinstance(value, base):
            return encode(plain(value), lend)
    return {"object": lend(value, False)}


def _is_flat(items: Iterable[object]) -> bool:
    return all(
        type(item) in _SAME_IN_JSON or (type(item) is int and -_SMALL < item < _SMALL) for item in items
    )


def _is_field(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None and len(name) < 100


def _pairs(items: Iterable[tuple[object, object]], lend: Callable[[object, bool], int]) -> list[list[object]]:
    return [[encode(key, lend), encode(item, lend)] for key, item in items]


def _utc_offset(value: Any) -> float | None:
    offset = value.utcoffset()
    return None if offset is None else offset.total_seconds()


def _day(value: Any) -> list[int]:
    return [value.year, value.month, value.day]


def _clock(value: Any) -> list[object]:
    return [value.hour, value.minute, value.second, value.microsecond, _utc_offset(value)]


_ENCODERS: dict[type, Callable[[Any, Callable[[object, bool], int]], object]] = {
    tuple: lambda v, lend: {"tuple": [encode(item, lend) for item in v]},
    set: lambda v, lend: {"set": [encode(item, lend) for item in v]},
    frozenset: lambda v, lend: {"frozenset": [encode(item, lend) for item in v]},
    dict: lambda v, lend: {"dict": _pairs(v.items(), lend)},
    type({}.keys()): lambda v, lend: {"keys": [encode(item, lend) for item in v]},
    type({}.values()): lambda v, lend: {"values": [encode(item, lend) for item in v]},
    type({}.items()): lambda v, lend: {"items": _pairs(v, lend)},
    bytes: lambda v, lend: {"bytes": v.hex()},
    bytearray: lambda v, lend: {"bytearray": v.hex()},
    complex: lambda v, lend: {"complex": [v.real, v.imag]},
    range: lambda v, lend: {"range": [hex(v.start), hex(v.stop), hex(v.step)]},
    Decimal: lambda v, lend: {"decimal": str(v)},
    Fraction: lambda v, lend: {"fraction": [hex(v.numerator), hex(v.denominator)]},
    datetime.date: lambda v, lend: {"date": _day(v)},
    datetime.time: lambda v, lend: {"time": _clock(v)},
    datetime.datetime: lambda v, lend: {"datetime": _day(v) + _clock(v)},
    datetime.timedelta: lambda v, lend: {"timedelta": [v.days, v.seconds, v.microseconds]},
    deque: lambda v, lend: {"deque": [v.maxlen, [encode(item, lend) for item in v]]},
    Counter: lambda v, lend: {"counter": _pairs(v.items(), lend)},
    OrderedDict: lambda v, lend: {"ordered": _pairs(v.items(), lend)},
    re.Match: lambda v, lend: (
        {"match": [v.string, [list(span) for span in v.regs], list(map(list, v.re.groupindex.items()))]}
        if type(v.string) is str
        else {"object": lend(v, False)}
    ),
    defaultdict: lambda v, lend: {
        "defaultdict": [_TYPE_NAMES.get(v.default_factory), _pairs(v.items(), lend)]
    },
}
_PLAIN: dict[type, Callable[[Any], object]] = {
    int: int.__index__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda v: bytes(bytes.__iter__(v)),
    bytearray: lambda v: bytearray(bytearray.__iter__(v)),
    complex: lambda v: complex(complex.real.__get__(v), complex.imag.__get__(v)),
    list: lambda v: list(list.__iter__(v)),
    tuple: lambda v: tuple(tuple.__iter__(v)),
    set: lambda v: set(set.__iter__(v)),
    frozenset: lambda v: frozenset(frozenset.__iter__(v)),
    dict: lambda v: dict(dict.items(v)),
}


class Reader:
    """Builds values from their forms.

    `borrow(number, is_iterator)` returns what stands for a thing of the sender that is not data.
    """

    def __init__(self, borrow: Callable[[int, bool], object]):
        self._borrow = borrow

    def read(self, form: object) -> object:
        """The value that `form` describes.

        Raises:
            Malformed: `form` does not match the schema.
        """
        try:
            return self._value(form)
        except (
            ValueError, TypeError, KeyError, ArithmeticError, RecursionError, AttributeError, ImportError,
            MemoryError,
        ) as error:  # fmt: skip
            raise Malformed(f"{type(error).__name__}: {error}"[:200]) from None

    def _value(self, form: object) -> object:
        kind = type(form)
        if kind in _LEAVES:
            return form
        if kind is list:
            assert isinstance(form, list)
            return [item if type(item) in _LEAVES else self._value(item) for item in form]
        assert isinstance(form, dict), "JSON has nothing else"
        if len(form) != 1:
            raise ValueError(f"an object of {len(form)} keys; expected the name of one form")
        ((name, content),) = form.items()
        return getattr(self, f"_{name}")(content) if name in _FORMS else self._unknown(name)

    def _unknown(self, name: str) -> object:
        raise ValueError(f"there is no form {name!r:.40}")

    def _items_of(self, content: object) -> list[object]:
        return [self._value(item) for item in _list(content)]

    def _pairs_of(self, content: object) -> list[tuple[object, object]]:
        return [(self._value(key), self._value(item)) for key, item in (_list(p, 2) for p in _list(content))]

    def _int(self, content: object) -> int:
        return int(_text(content), 16)

    def _tuple(self, content: object) -> object:
        return tuple(self._items_of(content))

    def _tuples(self, content: object) -> object:
        rows = [_list(row) for row in _list(content)]
        if not all(type(item) in _LEAVES for row in rows for item in row):
            raise ValueError("tuples of something else than leaves")
        return [tuple(row) for row in rows]

    def _set(self, content: object) -> object:
        return set(self._items_of(content))

    def _frozenset(self, content: object) -> object:
        return frozenset(self._items_of(content))

    def _dict(self, content: object) -> object:
        return dict(self._pairs_of(content))

    def _keys(self, content: object) -> object:
        return dict.fromkeys(self._items_of(content)).keys()

    def _values(self, content: object) -> object:
        return dict(enumerate(self._items_of(content))).values()

    def _items(self, content: object) -> object:
        return dict(self._pairs_of(content)).items()

    def _bytes(self, content: object) -> object:
        return bytes.fromhex(_text(content))

    def _bytearray(self, content: object) -> object:
        return bytearray.fromhex(_text(content))

    def _complex(self, content: object) -> object:
        real, imaginary = _list(content, 2)
        return complex(_number(real), _number(imaginary))

    def _range(self, content: object) -> object:
        return range(*(self._int(bound) for bound in _list(content, 3)))

    def _decimal(self, content: object) -> object:
        return Decimal(_text(content))

    def _fraction(self, content: object) -> object:
        return Fraction(*(self._int(part) for part in _list(content, 2)))

    def _type(self, content: object) -> object:
        return _TYPES[_text(content)]

    def _date(self, content: object) -> object:
        return datetime.date(*_integers(_list(content, 3)))

    def _time(self, content: object) -> object:
        *clock, offset = _list(content, 5)
        hour, minute, second, microsecond = _integers(clock)
        return datetime.time(hour, minute, second, microsecond, tzinfo=_zone(offset))

    def _datetime(self, content: object) -> object:
        *numbers, offset = _list(content, 8)
        return datetime.datetime(*_integers(numbers), tzinfo=_zone(offset))  # type: ignore[misc, arg-type]

    def _timedelta(self, content: object) -> object:
        return datetime.timedelta(*_integers(_list(content, 3)))

    def _deque(self, content: object) -> object:
        length, items = _list(content, 2)
        return deque(self._items_of(items), None if length is None else _integers([length])[0])

    def _match(self, content: object) -> object:
        string, spans, names = _list(content, 3)
        spans = tuple((first, last) for first, last in (_integers(_list(span, 2)) for span in _list(spans)))
        groups = {name: _integers([number])[0] for name, number in (_list(pair, 2) for pair in _list(names))}
        if type(string) is not str or not all(type(name) is str for name in groups):
            raise ValueError("expected a text and named groups")
        if not spans or not all(-1 <= first <= last <= len(string) for first, last in spans):
            raise ValueError("a span is outside of the text")
        if not all(0 < number < len(spans) for number in groups.values()):
            raise ValueError("a name has no group")
        return FoundMatch(string, spans, groups)

    def _counter(self, content: object) -> object:
        counts: Any = dict(self._pairs_of(content))
        return Counter(counts)

    def _ordered(self, content: object) -> object:
        return OrderedDict(self._pairs_of(content))

    def _defaultdict(self, content: object) -> object:
        factory, pairs = _list(content, 2)
        if factory is not None and factory not in _FACTORIES:
            raise ValueError("there is no such factory")
        made = None if factory is None else _TYPES[_text(factory)]
        return defaultdict(made, self._pairs_of(pairs))

    def _record(self, content: object) -> object:
        names, items = _list(content, 2)
        fields = tuple(_text(name) for name in _list(names))
        if len(fields) > _MAX_FIELDS or not all(map(_is_field, fields)):
            raise ValueError("these are not names of fields")
        return _record_type(fields)(*self._items_of(items))

    def _array(self, content: object) -> object:
        import numpy

        kind, shape, items = _list(content, 3)
        dtype = numpy.dtype(_text(kind))
        if dtype.kind not in _ARRAY_KINDS or dtype.hasobject:
            raise ValueError("there is no such type of arrays")
        values = self._items_of(items)
        if shape is None:
            [value] = values
            return numpy.array(value, dtype)[()]
        sizes = _integers(_list(shape))
        if any(size < 0 for size in sizes) or math.prod(sizes) != len(values):
            raise ValueError("this is not the shape of the items")
        return numpy.array(values, dtype).reshape(sizes)

    def _object(self, content: object) -> object:
        return self._borrow(_integers([content])[0], False)

    def _iterator(self, content: object) -> object:
        return self._borrow(_integers([content])[0], True)


_FORMS: Final = frozenset(
    (
        "int", "tuple", "tuples", "set", "frozenset", "dict", "keys", "values", "items", "bytes", "bytearray",
        "complex", "range", "decimal", "fraction", "type", "date", "time", "datetime", "timedelta", "deque",
        "counter", "ordered", "defaultdict", "match", "record", "array", "object", "iterator",
    )
)  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class FoundMatch:
    """What a candidate's `re.Match` found: like one, it is true, and equal only to itself."""

    string: str
    regs: tuple[tuple[int, int], ...]
    _names: dict[str, int]

    def span(self, group: int | str = 0) -> tuple[int, int]:
        return self.regs[self._names[group] if isinstance(group, str) else group]

    def start(self, group: int | str = 0) -> int:
        return self.span(group)[0]

    def end(self, group: int | str = 0) -> int:
        return self.span(group)[1]

    def __getitem__(self, group: int | str) -> str | None:
        first, last = self.span(group)
        return None if first < 0 else self.string[first:last]

    def group(self, *groups: int | str) -> str | tuple[str | None, ...] | None:
        found = tuple(self[group] for group in groups or (0,))
        return found[0] if len(found) == 1 else found

    def groups(self, default: str | None = None) -> tuple[str | None, ...]:
        found = (self[number] for number in range(1, len(self.regs)))
        return tuple(default if text is None else text for text in found)

    def groupdict(self, default: str | None = None) -> dict[str, str | None]:
        return {name: default if self[name] is None else self[name] for name in self._names}


@lru_cache(maxsize=64)
def _record_type(fields: tuple[str, ...]) -> Callable[..., object]:
    return namedtuple("Record", fields)


def _list(form: object, length: int | None = None) -> list[Any]:
    if type(form) is not list or (length is not None and len(form) != length):
        raise ValueError("expected a list" if length is None else f"expected a list of {length}")
    return form


def _text(form: object) -> str:
    if type(form) is not str:
        raise ValueError("expected a text")
    return form


def _number(form: object) -> float:
    if type(form) is not float and type(form) is not int:
        raise ValueError("expected a number")
    return form


def _integers(forms: Iterable[object]) -> list[int]:
    numbers = list(forms)
    if not all(type(number) is int for number in numbers):
        raise ValueError("expected an integer")
    return numbers  # type: ignore[return-value]


def _zone(offset: object) -> datetime.timezone | None:
    return None if offset is None else datetime.timezone(datetime.timedelta(seconds=_number(offset)))


def _encode_numpy(value: object, lend: Callable[[object, bool], int]) -> object:
    import numpy

    if not isinstance(value, numpy.ndarray | numpy.generic) or value.dtype.kind not in _ARRAY_KINDS:
        return {"object": lend(value, False)}
    shape = list(value.shape) if isinstance(value, numpy.ndarray) else None
    items = [encode(item, lend) for item in value.ravel().tolist()]
    return {"array": [value.dtype.str, shape, items]}
