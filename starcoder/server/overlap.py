"""Attribution over HTTP: `/overlap` as llm-vscode calls it, and the `attribution` field of completions.

Offsets of `/overlap` count UTF-16 code units, as editors do; those of completions count characters.
Source: huggingface/llm-vscode src/inlineSuggestions/highlightStackAttributions.ts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import Field

from starcoder.errors import StarcoderError
from starcoder.prepare.attribution import Index, Span
from starcoder.request import Chunk, Completion, CompletionRequest
from starcoder.server.codec import (
    Body,
    Exchange,
    HTTPError,
    Json,
    sse,
)

MAX_CHARACTERS = 100_000  # of a document: about a second of one core for 200 MB of known files


class OverlapBody(Body):
    """Body of `/overlap`."""

    document: str = Field(description="text to look up")


def overlap(data: object, index: Index | None) -> Json:
    """The spans of a document that are in the index, and their sources.

    Raises:
        HTTPError: no document, one that is too long, or a server without an index.
    """
    text = OverlapBody.read(data).document
    if len(text) > MAX_CHARACTERS:
        raise HTTPError(f"`document` has {len(text)} characters; expected at most {MAX_CHARACTERS}")
    spans = _required(index).find(text)
    units = _utf16_offsets(text)
    return {
        "spans": [[units[span.start], units[span.end]] for span in spans],
        "sources": [_sources(span) for span in spans],
    }


def attributed(exchange: Exchange, index: Index | None) -> Exchange:
    """The same exchange, whose answer has the spans of each sample that are in the index.

    Raises:
        HTTPError: a server without an index, or a stream that is no event stream.
    """
    if exchange.is_stream and exchange.media_type != "text/event-stream":
        raise HTTPError("this dialect's streams have no `attribution`", 'ask with "stream": false')
    return Attributed(exchange, _required(index))


@dataclass
class Attributed:
    """An exchange with `attribution` in its answer: for each sample in turn a list of spans.

    A stream carries it in one more event, with an empty list of choices, before it is closed.
    """

    inner: Exchange
    index: Index
    _texts: dict[tuple[int, int], str] = field(default_factory=dict)  # by request and sample

    @property
    def requests(self) -> Sequence[CompletionRequest]:
        return self.inner.requests

    @requests.setter
    def requests(self, requests: Sequence[CompletionRequest]) -> None:
        self.inner.requests = requests

    @property
    def is_stream(self) -> bool:
        return self.inner.is_stream

    @property
    def media_type(self) -> str:
        return self.inner.media_type

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        answer = self.inner.whole(samples)
        spans = [self._spans(position, one.text) for position, group in enumerate(samples) for one in group]
        if isinstance(answer, list):  # TGI's list of texts
            return [
                {**one, "attribution": found} if isinstance(one, dict) else one
                for one, found in zip(answer, spans, strict=False)
            ]
        return {**answer, "attribution": spans}

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        key = (position, chunk.index)
        self._texts[key] = self._texts.get(key, "") + chunk.text
        yield from self.inner.events(position, chunk)

    def end(self) -> str:
        spans = [self._spans(position, text) for (position, _), text in sorted(self._texts.items())]
        return sse({"choices": [], "attribution": spans}) + self.inner.end()

    def failure(self, error: StarcoderError) -> str:
        return self.inner.failure(error)

    def _spans(self, position: int, text: str) -> list[dict[str, object]]:
        spans = self.index.find_in_completion(self.requests[position].prefix, text)
        return [{"start": span.start, "end": span.end, "sources": _sources(span)} for span in spans]


def _required(index: Index | None) -> Index:
    if index is None:
        raise HTTPError("this server has no attribution index", "start it with `serve --attribution FOLDER`")
    return index


def _sources(span: Span) -> list[dict[str, object]]:
    return [asdict(source) for source in span.sources]


def _utf16_offsets(text: str) -> list[int]:
    """Offset of every character, and of the end, in UTF-16."""
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + (2 if ord(character) > 0xFFFF else 1))
    return offsets
