"""Compares what a function returned with what it should have returned, by EvalPlus's rules.

Runs in the test runner, on data alone.

Source: evalplus/evalplus v0.3.1: evalplus/eval/__init__.py and _special_oracle.py.
"""

import math
from collections.abc import Sequence
from typing import Any

_RELATIVE = 1e-7


def agree(
    found: object, expected: object, arguments: Sequence[object], *, rule: str, tolerance: float
) -> bool:
    """Whether a result is right by a rule; "equal" is the usual one."""
    match rule:
        case "root":
            [coefficients] = arguments
            return abs(_polynomial(coefficients, found)) <= tolerance
        case "any":
            return True
        case "set":
            return _same_items(found, expected)
        case "is given":
            given = expected if isinstance(expected, bool) else expected is not None
            return (found if isinstance(found, bool) else found is not None) == given
        case "or zero" if found == 0:
            return True
        case "surface" if _close(found, _surface(*arguments), tolerance):
            return True
        case "digits" if found == _digit_distance(*arguments):
            return True
    if tolerance == 0 and _is_floats(expected):
        tolerance = 1e-6
    return bool(found == expected) or (
        tolerance > 0 and type(found) is type(expected) and _close(found, expected, tolerance)
    )


def _same_items(found: Any, expected: Any) -> bool:
    return set(found) == set(expected)


def _is_floats(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(expected)
            and all(_close(a, b, tolerance) for a, b in zip(found, expected, strict=True))
        )
    if not isinstance(found, int | float | complex) or not isinstance(expected, int | float | complex):
        return bool(found == expected)
    return bool(found == expected) or abs(found - expected) <= tolerance + _RELATIVE * abs(expected)


def _polynomial(coefficients: Any, x: Any) -> float:
    return float(sum(c * math.pow(x, power) for power, c in enumerate(coefficients)))


def _surface(base: Any, height: Any) -> float:
    return float(round(base**2 + 2 * base * math.hypot(base / 2, height)))


def _digit_distance(first: object, second: object) -> int:
    width = max(len(str(first)), len(str(second)))
    pairs = zip(str(first).zfill(width), str(second).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in pairs)
