"""Finds documents that hold the texts of benchmarks: whole, blanks aside, or a share of their 10-grams.

Source: bigcode-dataset decontamination/ for whole texts; 10-grams of words as in The Stack v2.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starcoder.errors import ConfigError
from starcoder.files import read_jsonl
from starcoder.prepare.shingles import Hashes, shingles

GRAM = 10
_MIN_WHOLE = 40  # characters of a text that counts when it stands whole; shorter ones stand everywhere


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """What must not be in the data. `read` makes one."""

    texts: tuple[str, ...]  # blanks collapsed
    grams: tuple[Hashes, ...]
    all_grams: Hashes
    share: float

    @classmethod
    def read(cls, files: tuple[Path, ...], share: float) -> "Benchmarks":
        """Texts of JSON and JSONL files (every string of at least 40 characters in them) and of other files.

        Raises:
            ConfigError: a file cannot be read.
        """
        found = [" ".join(text.split()) for file in files for text in _texts(file)]
        texts = tuple(dict.fromkeys(text for text in found if len(text) >= _MIN_WHOLE))
        grams = tuple(shingles(text.encode(), GRAM) for text in texts)
        every = np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint32)
        return cls(texts, grams, every, share)

    def holds_any_of(self, content: str) -> bool:
        """Whether the document holds a benchmark's text."""
        if not self.texts:
            return False
        own = shingles(content.encode("utf-8", "replace"), GRAM)
        shared = own[np.isin(own, self.all_grams, assume_unique=True)]
        flat = ""
        for text, grams in zip(self.texts, self.grams, strict=True):
            if len(grams) and len(shared):
                num_shared = int(np.isin(grams, shared, assume_unique=True).sum())
                if num_shared and num_shared >= self.share * len(grams):
                    return True
            elif not len(grams):
                flat = flat or " ".join(content.split())
                if text in flat:
                    return True
        return False


def _texts(path: Path) -> Iterator[str]:
    try:
        if {".json", ".jsonl"}.isdisjoint(path.suffixes):
            yield path.read_text("utf-8")
            return
        try:
            rows: object = [json.loads(path.read_bytes())]
        except ValueError:
            rows = list(read_jsonl(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"benchmark {str(path)!r} cannot be read: {error}", "name text or JSONL files"
        ) from None
    yield from _strings(rows)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
