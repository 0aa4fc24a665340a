"""Documents for training: reads sources, cuts them to length and applies fill-in-the-middle.

FIM works as the family was trained: on characters, per document, after cutting to length, the parts
encoded separately. Source: bigcode-project/Megatron-LM `megatron/data/gpt_dataset.py`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.prompts import FimLayout, join_fim
from starcoder.tokenizer import Tokenizer

MAX_CHARACTERS_PER_TOKEN = 12  # an upper bound good enough to encode a window instead of a whole file


@dataclass(frozen=True, kw_only=True, slots=True)
class FimSettings:
    """How often documents are turned into infills, and how many of those are in SPM order."""

    rate: float = 0.5
    spm_rate: float = 0.5


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document ready to train on; it attends to nothing outside itself."""

    tokens: list[int]
    end: int  # character offset in the document where the piece ends


def read_texts(path: Path, suffix: str = ".py") -> list[str]:
    """All documents of a JSONL file (key `content`, or `text`) or of a folder's `suffix` files.

    Raises:
        ConfigError: nothing there, or lines without either key.
    """
    if path.is_dir():
        texts = [file.read_text(encoding="utf-8") for file in sorted(path.rglob(f"*{suffix}"))]
    elif path.is_file():
        texts = list(_read_jsonl(path))
    else:
        raise ConfigError(f"no training data at {str(path)!r}", "name a folder of sources or a JSONL file")
    texts = [text for text in texts if text]
    if not texts:
        raise ConfigError(f"{str(path)!r} holds no documents", f"expected {suffix} files or JSONL lines")
    return texts


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield row["content"] if "content" in row else row["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ConfigError(
                    f"{path}:{number} is not a document",
                    'each line is a JSON object with the key "content" or "text"',
                ) from None


def cut_piece(
    text: str, start: int, room: int, tokenizer: Tokenizer, fim: FimSettings, rng: random.Random
) -> Piece:
    """The next piece of `text` from character `start`, at most `room` tokens long.

    End-of-text follows where the document ends, and after every infilled middle.
    """
    eos = tokenizer.sentinels.eos
    is_infill = rng.random() < fim.rate
    slack = 8 if is_infill else 1  # four sentinels and end-of-text, and what encoding apart adds
    part, tokens = _cut(text, start, room - slack, tokenizer)
    end = start + len(part)
    if is_infill and len(part) > 2:
        return Piece(_infill(part, room, tokenizer, fim, rng), end)
    return Piece([*tokens, eos] if end == len(text) else tokens, end)


def _cut(text: str, start: int, limit: int, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The longest part of `text` from `start` that is whole characters and at most `limit` tokens."""
    window = text[start : start + limit * MAX_CHARACTERS_PER_TOKEN]
    tokens = tokenizer.encode(window)
    if len(tokens) <= limit:
        return window, tokens
    while limit > 0:
        part = tokenizer.decode(tokens[:limit])
        if window.startswith(part):
            return part, tokens[:limit]
        limit -= 1  # the cut fell inside a character
    raise AssertionError("a character of at most four bytes fits in any room that pieces are cut for")


def _infill(part: str, room: int, tokenizer: Tokenizer, fim: FimSettings, rng: random.Random) -> list[int]:
    first, second = sorted(rng.sample(range(len(part) + 1), 2))
    prefix, middle, suffix = (tokenizer.encode(x) for x in (part[:first], part[first:second], part[second:]))
    over = len(prefix) + len(middle) + len(suffix) + 4 - room
    if over > 0:  # rare: encoding the parts apart took more tokens than the slack
        suffix = suffix[: max(0, len(suffix) - over)]
    layout: FimLayout = "spm" if rng.random() < fim.spm_rate else "psm"
    prompt = join_fim(layout, prefix, suffix, tokenizer.sentinels)
    return [*prompt, *middle, tokenizer.sentinels.eos][:room]
