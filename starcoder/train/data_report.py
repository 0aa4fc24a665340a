"""What a run is about to train on: counts over some documents, and three samples to look at.

Refuses data of which nothing would be learned, or, where a part should be masked, everything.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.examples import Example
from starcoder.train.shapes import Record, RowError

_SHOWN_CHARACTERS = 1200
_DOCUMENTS = 200


@dataclass(frozen=True, slots=True)
class DataReport:
    """Of the documents looked at: how long they are and how much of them is learned."""

    num_documents: int
    num_examples: int
    num_tokens: int
    num_learned: int
    num_cut: int  # examples that go on beyond their room
    num_empty: int  # documents that teach nothing and are left out
    samples: tuple[Example, ...]

    @property
    def tokens_per_document(self) -> float:
        return self.num_tokens / self.num_documents

    @property
    def summary(self) -> str:
        learned = self.num_learned / max(1, self.num_tokens - self.num_examples)
        notes = [
            f"{self.tokens_per_document:,.0f} tokens a document",
            f"{learned:.0%} of them learned",
            f"{self.num_cut} of {self.num_examples} examples cut to length",
        ]
        return ", ".join([*notes, *([f"{self.num_empty} documents left out"] if self.num_empty else [])])


def report(
    records: Sequence[Record],
    form: Callable[[Record, int, random.Random], list[Example]],
    seq_length: int,
    *,
    masks: bool = False,
    samples: int = 3,
) -> DataReport:
    """Look at up to 200 of the records as they will be trained on; `masks`: a part must not be learned.

    Raises:
        ConfigError: nothing is learned of any of them, or nothing is masked where questions should be.
    """
    looked_at = records[:_DOCUMENTS]
    made: list[list[Example]] = []
    for n, record in enumerate(looked_at):
        try:
            made.append(form(record, seq_length + 1, random.Random(f"survey {n}")))
        except RowError:
            made.append([])  # the stream says which, and why
    examples = [example for of_row in made for example in of_row]
    num_learned = sum(example.num_learned for example in examples)
    num_tokens = sum(len(example.tokens) for example in examples)
    if not num_learned:
        raise ConfigError(
            f"nothing would be learned from any of {len(looked_at)} documents: all is masked or empty",
            "are the columns right, do dialogues have assistant turns, do they fit --seq-length?",
        )
    if masks and all(all(example.learned) for example in examples):
        raise ConfigError(
            "nothing is masked: questions would be learned as well as answers",
            "check the template and its columns; --learn-prompts if this is what you want",
        )
    chosen = tuple(of_row[0] for of_row in made if of_row)[:samples]
    return DataReport(
        num_documents=len(looked_at),
        num_examples=len(examples),
        num_tokens=num_tokens,
        num_learned=num_learned,
        num_cut=sum(example.is_cut for example in examples),
        num_empty=sum(not of_row for of_row in made),
        samples=chosen,
    )


def colored(example: Example, tokenizer: Tokenizer) -> Text:
    """The example's text: learned tokens green, masked ones dim; without colors learned parts are in ⟦⟧."""
    text = Text()
    start = 0
    while start < len(example.tokens):
        stop = start
        while stop < len(example.tokens) and example.learned[stop] == example.learned[start]:
            stop += 1
        piece, is_learned = tokenizer.decode(example.tokens[start:stop]), example.learned[start]
        if len(text) + len(piece) > _SHOWN_CHARACTERS:
            piece = piece[: max(0, _SHOWN_CHARACTERS - len(text))] + " ..."
        text.append(f"⟦{piece}⟧" if is_learned else piece, style="green" if is_learned else "dim")
        if len(text) > _SHOWN_CHARACTERS:
            break
        start = stop
    return text
