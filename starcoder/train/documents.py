"""Documents for training: reads sources, cuts them to length and applies fill-in-the-middle.

FIM works as the family was trained: on characters, per document, after cutting to length, the parts
encoded separately. Source: bigcode-project/Megatron-LM `megatron/data/gpt_dataset.py`.
"""

import ast
import random
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import read_jsonl
from starcoder.layouts import FimOrder
from starcoder.repos.walk import source_files
from starcoder.tokenizer import Tokenizer
from starcoder.train.settings import FimSettings

MAX_CHARACTERS_PER_TOKEN = 12  # an upper bound good enough to encode a window instead of a whole file


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document ready to train on; it attends to nothing outside itself."""

    tokens: list[int]
    end: int  # character offset in the document where the piece ends


def read_texts(path: Path, *, split: Literal["train", "validation"] = "train") -> list[str]:
    """All documents of a prepared data set's split, of a JSONL file, or of a folder's Python files.

    A row of a JSONL file has its text under `content` or `text`.

    Raises:
        ConfigError: nothing there, or lines without either key.
    """
    if (path / "dataset.json").is_file():
        texts = _prepared(path, split)
    elif path.is_dir():
        texts = [file.read_text("utf-8") for file in source_files(path) if file.suffix == ".py"]
    elif path.is_file():
        texts = [_content(row, number, path) for number, row in enumerate(read_jsonl(path), 1)]
    else:
        raise ConfigError(
            f"no training data at {str(path)!r}", "name a folder that `starcoder prepare` wrote"
        )
    texts = [text for text in texts if text]
    if not texts:
        raise ConfigError(
            f"{str(path)!r} holds no documents", "expected a prepared data set, Python files or JSON lines"
        )
    return texts


def _prepared(folder: Path, split: str) -> list[str]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow", "train") from None
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [
        text for shard in shards for text in parquet.read_table(shard, columns=["content"])[0].to_pylist()
    ]


def _content(row: Mapping[str, object], number: int, path: Path) -> str:
    text = row.get("content", row.get("text"))
    if not isinstance(text, str):
        raise ConfigError(
            f"document {number} of {str(path)!r} has no text",
            'each line is a JSON object with the key "content" or "text"',
        )
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What surrounds a document's text: it is never infilled.

    `before` comes before an infill; `tags` come before the text, inside an infill's prefix; the first `lead`
    characters of the text are a header.
    """

    before: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()
    lead: int = 0
    ends: bool = True  # end-of-text follows the document, and every middle
    spans: tuple[tuple[int, int], ...] = ()  # characters of whole pieces of syntax


PLAIN = Frame()


def cut_piece(
    text: str,
    start: int,
    room: int,
    tokenizer: Tokenizer,
    fim: FimSettings,
    rng: random.Random,
    frame: Frame = PLAIN,
) -> Piece:
    """The next piece of `text` from character `start`, at most `room` tokens long.

    End-of-text follows where the document ends, and after every infilled middle. The frame's tags and
    header belong to the first piece.
    """
    before, tags = (list(frame.before), list(frame.tags)) if start == 0 else ([], [])
    room -= len(before)
    eos = [tokenizer.sentinels.eos] if frame.ends else []
    is_infill = rng.random() < fim.rate
    slack = 8 if is_infill else 1  # four sentinels and end-of-text, and what encoding apart adds
    part, tokens = _cut(text, start, room - slack - len(tags), tokenizer)
    end = start + len(part)
    fixed = max(0, frame.lead - start)
    if is_infill and len(part) - fixed > 2:
        first, second = _hole(len(part), fixed, start, frame, fim, rng)
        order = tokenizer.sentinels.order("spm" if rng.random() < fim.spm_rate else "psm")
        infill = _infill(part, (first, second), order, room - len(tags), tokenizer, tags)
        return Piece([*before, *[*infill, *eos][:room]], end)
    return Piece([*before, *tags, *tokens, *(eos if end == len(text) else [])], end)


def _hole(
    length: int, fixed: int, start: int, frame: Frame, fim: FimSettings, rng: random.Random
) -> tuple[int, int]:
    """Where the middle begins and ends in a part of `length` characters that starts at `start`."""
    if frame.spans and rng.random() < fim.syntax_rate:
        inside = [
            (a - start, b - start) for a, b in frame.spans if a - start >= fixed and b - start <= length
        ]
        if inside:
            return rng.choice(inside)
    first, second = sorted(rng.sample(range(fixed, length + 1), 2))
    return first, second


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


def _infill(
    part: str, hole: tuple[int, int], order: FimOrder, room: int, tokenizer: Tokenizer, tags: list[int]
) -> list[int]:
    first, second = hole
    prefix, middle, suffix = (tokenizer.encode(x) for x in (part[:first], part[first:second], part[second:]))
    over = len(prefix) + len(middle) + len(suffix) + 4 - room
    if over > 0:  # rare: encoding the parts apart took more tokens than the slack
        suffix = suffix[: max(0, len(suffix) - over)]
    return [*tokenizer.sentinels.infill(order, [*tags, *prefix], suffix), *middle]


def syntax_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Characters of every statement and expression of Python source; () of what does not parse.

    Pieces shorter than 3 characters are left out, and so is the module itself.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the user's sources
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)  # where Python's parser sees line ends, and nowhere else
    starts = list(accumulate(map(len, lines), initial=0))

    def place(line: int, column: int) -> int:
        row = lines[line - 1]
        return starts[line - 1] + (column if row.isascii() else len(row.encode()[:column].decode()))

    found = {
        (place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset))
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.expr) and node.end_lineno and node.end_col_offset is not None
    }
    return tuple(sorted(span for span in found if span[1] - span[0] >= 3))
