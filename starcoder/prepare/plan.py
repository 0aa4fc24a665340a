"""Decides where each document that stays goes: its split, its place in a repository, its shard."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from typing import Literal

from starcoder.errors import ConfigError
from starcoder.prepare.ingest import Row
from starcoder.prepare.order import File, by_dependency
from starcoder.prepare.settings import PrepareSettings

Split = Literal["train", "validation"]
Placed = tuple[int, Row]  # a document and the number of its batch


@dataclass(frozen=True, slots=True)
class Plan:
    """The documents of each split in order, cut into shards."""

    shards: dict[Split, tuple[tuple[Placed, ...], ...]]

    def rows(self, split: Split) -> list[Row]:
        """All documents of a split, in order."""
        return [row for shard in self.shards.get(split, ()) for _, row in shard]


def make_plan(rows: Sequence[Placed], settings: PrepareSettings) -> Plan:
    """A plan that depends on the rows and the settings alone.

    Raises:
        ConfigError: the split is impossible: one repository, or files without a time.
    """
    held = _held(rows, settings)
    parts: dict[Split, list[Placed]] = {"train": [], "validation": []}
    groups: dict[str, list[Placed]] = {}
    for placed in rows:
        groups.setdefault(placed[1].repository, []).append(placed)
    for group in groups.values():
        for placed in _ordered(group, settings):
            parts["validation" if _key(placed[1]) in held else "train"].append(placed)
    return Plan({split: tuple(_cut(part, settings.shard_bytes)) for split, part in parts.items() if part})


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.repository, row.path, row.kind, row.blob


def _held(rows: Sequence[Placed], settings: PrepareSettings) -> set[tuple[str, str, str, str]]:
    """The documents to validate on."""
    if settings.held_out:
        known = sorted({row.repository for _, row in rows})
        named = {name for name in known if any(fnmatch(name, pattern) for pattern in settings.held_out)}
        if not named:
            raise ConfigError(
                f"no repository is named {settings.held_out[0]!r}",
                f"--held-out: {', '.join(known[:20])}",
            )
        return {_key(row) for _, row in rows if row.repository in named}
    if settings.validation_share == 0:
        return set()
    if settings.split_by == "time":
        return _newest(rows, settings.validation_share)
    if settings.split_by == "file":
        return {
            _key(row)
            for _, row in rows
            if _fraction(f"{settings.seed} {row.repository} {row.path}") < settings.validation_share
        }
    sizes: dict[str, int] = {}
    for _, row in rows:
        sizes[row.repository] = sizes.get(row.repository, 0) + row.length
    if len(sizes) < 2:
        raise ConfigError("there is one repository, so none can be held out", "--split-by file or time")
    names = sorted(sizes, key=lambda name: _fraction(f"{settings.seed} {name}"))
    held, size = {names[0]}, sizes[names[0]]
    for name in names[1:-1]:
        if size + sizes[name] > settings.validation_share * sum(sizes.values()):
            break
        held, size = held | {name}, size + sizes[name]
    return {_key(row) for _, row in rows if row.repository in held}


def _newest(rows: Sequence[Placed], share: float) -> set[tuple[str, str, str, str]]:
    """The documents changed last, as many as make the share of those whose time is known."""
    dated = [(row.time, _key(row)) for _, row in rows if row.time is not None]
    if not dated:
        raise ConfigError("no document has a commit time", "--split-by file; or name git repositories")
    dated.sort(reverse=True)
    return {key for _, key in dated[: max(1, round(share * len(dated)))]}


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _ordered(rows: list[Placed], settings: PrepareSettings) -> list[Placed]:
    """Files first, then what was said about them; commits from old to new."""
    files = sorted((p for p in rows if p[1].kind in ("file", "notebook")), key=lambda p: p[1].path)
    others = [p for p in rows if p[1].kind not in ("file", "notebook")]
    others.sort(key=lambda p: (p[1].kind, p[1].time or 0, p[1].path, p[1].blob))
    if settings.order == "dependency":
        files = [files[n] for n in by_dependency([File(row.path, row.imports) for _, row in files])]
    return files + others


def _cut(rows: Sequence[Placed], shard_bytes: int) -> list[tuple[Placed, ...]]:
    shards: list[tuple[Placed, ...]] = []
    start, size = 0, 0
    for end, (_, row) in enumerate(rows, 1):
        size += row.length
        if size >= shard_bytes or end == len(rows):
            shards.append(tuple(rows[start:end]))
            start, size = end, 0
    return shards
