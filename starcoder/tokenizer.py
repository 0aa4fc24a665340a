"""Text to token ids and back, for the byte-level BPE of this family; streams never split a character.

Byte-level BPE alone: other kinds of `tokenizer.json` are refused. Decoding needs no library: a token
is bytes, and text is those bytes joined.
"""

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starcoder.chat import own_source
from starcoder.errors import CheckpointError, RequestError
from starcoder.files import read_json
from starcoder.layouts import SENTINELS, Sentinels

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Latin-1 has these printable; byte-level BPE writes the other bytes as the characters from U+0100 on.
# Source: openai/gpt-2: src/encoder.py, `bytes_to_unicode`.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + rank): byte for rank, byte in enumerate(_HIDDEN)
}

# The library's `encode` keeps Python's lock, its `encode_batch_fast` does not. Measured: 400,000 characters
# in one line take 0.6 s, for which every other thread would stop.
_LONG_TEXT = 10_000


class Tokenizer:
    """The vocabulary of a checkpoint. `load` makes one."""

    def __init__(
        self,
        backend: "Backend",
        *,
        special: dict[str, int],
        vocab_size: int,
        chat_template: str | None = None,
        own_ends: frozenset[int] = frozenset(),
    ):
        """`backend` must not know the `special` texts: user text goes through it as it is.

        `vocab_size` is one more than the largest id, special ones included. `own_ends` end a generation, in
        addition to the family's sentinels.

        Raises:
            CheckpointError: no end-of-text token, or only some of the infilling sentinels.
        """
        self.chat_template = chat_template
        self._backend = backend
        self._special = special
        self._text_of_special = {id: text for text, id in special.items()}
        longest_first = sorted(special, key=len, reverse=True)
        self._split_special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        found = Sentinels.resolve(special.get)
        self._sentinels = replace(found, end_ids=found.end_ids | own_ends, own_ends=tuple(sorted(own_ends)))
        self.vocab_size = vocab_size

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json`, and the chat template if there is one.

        Raises:
            CheckpointError: files missing or broken, not byte-level BPE, or sentinels that are not one token.
        """
        from tokenizers import Tokenizer as Backend

        path = folder / "tokenizer.json"
        document = read_json(path)
        try:
            _require_byte_level(document, path)
            special = _take_special(document)
            backend = Backend.from_str(json.dumps(document, ensure_ascii=False))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for what it cannot read
            raise CheckpointError(
                f"{str(path)!r} cannot be read: {error}", "it may be damaged; download it again"
            ) from None
        vocab_size = 1 + max(0, *document["model"]["vocab"].values(), *special.values())
        return cls(
            backend,
            special=special,
            vocab_size=vocab_size,
            chat_template=own_source(folder),
            own_ends=_own_ends(folder),
        )

    @property
    def sentinels(self) -> Sentinels:
        return self._sentinels

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by their text."""
        return dict(self._special)

    @property
    def special_texts(self) -> tuple[str, ...]:
        """What `encode_with_special` takes for special tokens."""
        return tuple(self._special)

    def encode(self, text: str) -> list[int]:
        """Ids of user text. Text that spells a special token comes out as ordinary tokens.

        Raises:
            RequestError: half of a surrogate pair in the text.
        """
        try:
            if len(text) > _LONG_TEXT:
                [long] = self._backend.encode_batch_fast([text], add_special_tokens=False)
                return list(long.ids)
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # how the library refuses what has no UTF-8
            raise RequestError(
                "the text holds half of a surrogate pair, which is no character",
                "it may have been read with the wrong encoding",
            ) from None
        return ids

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of a raw prompt: what spells a special token becomes that token."""
        ids: list[int] = []
        end = 0
        for match in self._split_special.finditer(text):
            ids += [*self.encode(text[end : match.start()]), self._special[match.group()]]
            end = match.end()
        return ids + self.encode(text[end:])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens as their text and spaces as they are.

        Bytes that are no UTF-8 become U+FFFD; ids that the vocabulary lacks are empty.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text; a part of a character if need be."""
        special = self._text_of_special.get(token)
        if special is not None:
            return special.encode()
        characters: str | None = self._backend.id_to_token(token)
        if characters is None:
            return b""
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in characters])
        except KeyError:  # not in the byte alphabet, so the text itself: as the library's own decoder has it
            return characters.encode()

    @cached_property
    def index(self) -> "TokenIndex":
        """The ordinary tokens by their bytes; made at the first use, in a fifth of a second for 50,000."""
        ordinary = (token for token in range(self.vocab_size) if token not in self._text_of_special)
        return TokenIndex({token: self.token_bytes(token) for token in ordinary})

    def pieces(self, text: str) -> list[int]:
        """Bytes of each piece of text that is encoded apart from the others, in order: words, mostly."""
        splitter = self._backend.pre_tokenizer
        if splitter is None:
            return [len(text.encode())]
        spans = [span for _, span in splitter.pre_tokenize_str(text)]
        return [len(text[start:end].encode()) for start, end in spans]

    def token_text(self, token: int, skip: int = 0) -> str:
        """The token alone as text, less its first `skip` bytes; U+FFFD stands for parts of characters."""
        return self.token_bytes(token)[skip:].decode("utf-8", errors="replace")

    def stream(self) -> "StreamDecoder":
        """A decoder for one text that comes token by token."""
        return StreamDecoder(self)


class TokenIndex:
    """Tokens by their bytes: a trie, kept as a sorted list, in which a branch is a range."""

    def __init__(self, bytes_of: dict[int, bytes]):
        spelled = sorted((text, token) for token, text in bytes_of.items() if text)
        self._texts = [text for text, _ in spelled]
        self._tokens = [token for _, token in spelled]
        self._longest = max(map(len, self._texts), default=0)

    def spelling(self, text: bytes) -> list[int]:
        """Tokens that can come first where `text` is spelled: those that begin it, and those it begins.

        The work is proportional to the result and to the length of `text`, not to the vocabulary.
        """
        found: list[int] = []
        for length in range(1, min(len(text), self._longest + 1)):
            found += self._between(text[:length], text[:length] + b"\0")
        return found + self._between(text, _successor(text))

    def _between(self, low: bytes, high: bytes | None) -> list[int]:
        """Tokens whose bytes are at least `low` and below `high`; None: no upper limit."""
        start = bisect_left(self._texts, low)
        return self._tokens[start : None if high is None else bisect_left(self._texts, high, start)]


def _successor(text: bytes) -> bytes | None:
    """The least text above all that begin with `text`."""
    text = text.rstrip(b"\xff")
    return text[:-1] + bytes([text[-1] + 1]) if text else None


class StreamDecoder:
    """Text as tokens come, in whole characters. What it gives, joined, is `Tokenizer.decode` of all."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int, skip: int = 0) -> str:
        """The text that this token completes, less its first `skip` bytes; "" within a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token)[skip:])

    def flush(self) -> str:
        """What is held back when no more tokens come: "" or U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _own_ends(folder: Path) -> frozenset[int]:
    """`eos_token_id` of config.json and generation_config.json, an id or several: both count.

    Raises:
        CheckpointError: something else than ids.
    Source: transformers: generation/utils.py, which stops at any of generation_config's.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        value = read_json(path).get("eos_token_id") if path.is_file() else None
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids):
            raise CheckpointError(
                f"{str(path)!r} says eos_token_id {value!r}", "it must be a token id or a list of them"
            )
        found |= set(ids)
    return frozenset(found)


def _require_byte_level(document: dict[str, Any], path: Path) -> None:
    model = document["model"]["type"]
    decoder = (document.get("decoder") or {}).get("type")
    if model != "BPE" or decoder != "ByteLevel":
        raise CheckpointError(
            f"{str(path)!r} is {model} with decoder {decoder}, expected BPE with decoder ByteLevel",
            "only the tokenizers of the StarCoder family are supported",
        )


def _take_special(document: dict[str, Any]) -> dict[str, int]:
    """Remove the special tokens from `document`, in place, and return their ids by text.

    All added tokens count, marked special or not: the library finds them in user text whatever it is told.
    Padding and truncation go as well, they would change what is encoded.
    """
    model = document["model"]
    special = {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    special |= {text: id for text, id in model["vocab"].items() if text in SENTINELS}
    model["vocab"] = {text: id for text, id in model["vocab"].items() if text not in special}
    model["merges"] = [merge for merge in model["merges"] if special.keys().isdisjoint(_parts(merge))]
    document |= {"added_tokens": [], "padding": None, "truncation": None, "post_processor": None}
    return special


def _parts(merge: str | list[str]) -> tuple[str, str, str]:
    """Both sides of a merge, written as a string in older files, and what they make."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
