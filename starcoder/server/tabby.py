"""Tabby's `/v1/completions` with `segments`, `/v1/health` and `/v1/events`.

Its declarations and snippets become files of the prompt, least important first, in a stable order.
"""

import os
import platform
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from starcoder import __version__
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, ContextFile
from starcoder.server.codec import (
    Body,
    CompletionFields,
    Json,
    ServerInfo,
)

# Its clients have no field to ask for another number. Source: Tabby, `default_max_decoding_tokens`.
DEFAULT_MAX_TOKENS = 64


class Snippet(Body):
    filepath: str = ""
    body: str = ""


class Segments(Body):
    prefix: str = ""
    suffix: str | None = None
    filepath: str | None = None
    git_url: str | None = None
    declarations: tuple[Snippet, ...] = ()
    relevant_snippets_from_changed_files: tuple[Snippet, ...] = ()
    relevant_snippets_from_recently_opened_files: tuple[Snippet, ...] = ()


class TabbyCompletionBody(CompletionFields):
    """Body of `/v1/completions` as Tabby's clients send it."""

    language: str = ""
    segments: Segments
    mode: str = "standard"


class EventBody(Body):
    """Body of `/v1/events`."""

    type: Literal["view", "select", "dismiss"]
    completion_id: str = ""


def read_completion(data: object, info: ServerInfo) -> "TabbyExchange":
    """Parse a completion request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = TabbyCompletionBody.read(data)
    segments = body.segments
    snippets = [
        *segments.relevant_snippets_from_recently_opened_files,
        *segments.relevant_snippets_from_changed_files,
        *segments.declarations,
    ]
    request = body.infill(
        segments.prefix, segments.suffix, body.params(default_max_tokens=DEFAULT_MAX_TOKENS)
    )
    request = replace(
        request,
        path=segments.filepath or None,
        repo=_repository(segments.git_url),
        extras=tuple(ContextFile(path=snippet.filepath, text=snippet.body) for snippet in snippets),
    )
    return TabbyExchange([request], info, body.mode)


def _repository(url: str | None) -> str | None:
    """`owner/name` of a git address."""
    if not url:
        return None
    parts = url.removesuffix("/").removesuffix(".git").replace(":", "/").split("/")
    return "/".join(parts[-2:]) or None


@dataclass
class TabbyExchange:
    """One request of a Tabby client and the format of its answer. It never streams."""

    requests: Sequence[CompletionRequest]
    info: ServerInfo
    mode: str
    is_stream: bool = False
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        choices = [{"index": one.index, "text": one.text} for one in samples[0]]
        return {"id": self.id, "choices": choices, "mode": self.mode}

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        raise AssertionError("this dialect does not stream")

    def end(self) -> str:
        raise AssertionError("this dialect does not stream")

    def failure(self, error: StarcoderError) -> str:
        raise AssertionError("this dialect does not stream")


def read_event(data: object) -> str:
    """What became of a completion: view, select or dismiss. Raises: HTTPError: none of these."""
    return EventBody.read(data).type


def health(info: ServerInfo) -> Json:
    """`/v1/health`."""
    return {
        "model": info.model,
        "device": "cpu",
        "arch": platform.machine(),
        "cpu_info": platform.processor(),
        "cpu_count": os.cpu_count() or 1,
        "cuda_devices": [],
        "models": {"completion": {"local": {"model_id": info.model}}},
        "version": {"build_date": "", "build_timestamp": "", "git_sha": "", "git_describe": __version__},
    }
