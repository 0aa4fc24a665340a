"""Rows of text as aligned columns, and sizes as people write and read them."""

import re
from collections.abc import Sequence

from starcoder.errors import ConfigError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]i?B?|B)\s*", re.IGNORECASE)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """One line a row: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def megabytes(size_bytes: float) -> str:
    """Millions of bytes, with one decimal below a gigabyte."""
    return f"{size_bytes / 1e6:,.{0 if size_bytes >= 1e9 else 1}f} MB"


def parse_size(text: str, option: str) -> int:
    """Bytes of "24GB", "512 MiB" or "1.5G".

    Raises:
        ConfigError: it is something else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option} is {text!r}; expected a size", "write it as 24GB or 512MiB")
    unit = match[2].upper()
    return int(float(match[1]) * _UNITS[unit if unit.endswith("B") else f"{unit}B"])
