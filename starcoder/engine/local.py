"""A model in this process: load it, complete, stream. What `starcoder.load` returns."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch

from starcoder import checkpoint, devices
from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.errors import ConfigError
from starcoder.quantize import Scheme
from starcoder.request import (
    Chunk,
    Completion,
    CompletionRequest,
    ContextFile,
    Layout,
    PostprocessRule,
    SamplingParams,
    StopAt,
    collect,
)
from starcoder.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Options(TypedDict, total=False):
    """What `complete` and `stream` take beside the text; see `CompletionRequest` and `SamplingParams`."""

    path: str | None
    repo: str | None
    extras: tuple[ContextFile, ...]
    layout: Layout
    heal: bool
    session: str | None
    priority: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    stop: tuple[str, ...]
    stop_at: StopAt | None
    min_indent: int | None
    max_lines: int | None
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    seed: int | None
    logprobs: int | None
    deadline_ms: float | None
    deadline_at: Literal["token", "line"]
    postprocess: tuple[PostprocessRule, ...] | None


class Model:
    """A loaded checkpoint with its tokenizer and engine. A `request.Generator`."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer

    def complete(self, prefix: str, suffix: str | None = None, **options: Unpack[Options]) -> Completion:
        """What the model writes after `prefix`, or between `prefix` and `suffix`; greedy by default.

        For several samples or requests at once use `generate`.

        Raises:
            RequestError: an empty prompt, an option out of range, or more tokens than the context holds.
        """
        [[completion]] = collect(self.stream(prefix, suffix, **options)).values()
        return completion

    def stream(self, prefix: str, suffix: str | None = None, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Like `complete`, piece by piece: `for chunk in model.stream("..."): print(chunk.text, end="")`.

        Raises:
            RequestError: as `complete`, when the first chunk is asked for.
        """
        return self.generate([_request(prefix, suffix, options)])

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]:
        """Serve requests together; see `Engine.generate`."""
        return self.engine.generate(requests)


def load(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: Scheme | None = None,
    adapter: str | Path | None = None,
    threads: int | None = None,
    settings: EngineSettings | None = None,
) -> Model:
    """Load a checkpoint for use in this process.

    `model` is a local folder, a hub id, or None for the bundled model. `device` None is "auto": CUDA, then
    MPS where it works, then the CPU. `dtype` None is float32 on a CPU, where prefill in bfloat16 is five
    times slower, and the checkpoint's own elsewhere. `quantize` rounds the weights while they are read; a
    folder that `starcoder quantize` wrote is rounded already and loads at once. `adapter`, a folder or hub
    id, is merged while loading; its tokenizer replaces the model's. `threads` sets torch's number of threads
    for the whole process.

    Raises:
        CheckpointError: files missing, broken or of another family.
        ConfigError: no such device, dtype or scheme, or the checkpoint is quantized otherwise.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = devices.choose_device(device)
    log.info("runs on %s: %s", chosen.device, chosen.reason)
    if quantize not in (None, *get_args(Scheme)):
        raise ConfigError(f"quantize is {quantize!r}; expected one of {', '.join(get_args(Scheme))}")
    folder = checkpoint.resolve(model)
    if quantize is None and dtype is None and adapter is None:
        quantize = checkpoint.default_scheme(folder)
    if dtype is None and chosen.device.type == "cpu":
        dtype = "float32"
    tokenizer = Tokenizer.load(checkpoint.resolve_text(folder, adapter))
    transformer = checkpoint.load(
        folder, device=chosen.device, dtype=_dtype(dtype), quantize=quantize, adapter=adapter
    )
    return Model(Engine(transformer, tokenizer, settings=settings), tokenizer)


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(name, str):
        if name not in _DTYPES:
            raise ConfigError(f"dtype is {name!r}; expected one of {', '.join(_DTYPES)}")
        return _DTYPES[name]
    return name


def _request(prefix: str, suffix: str | None, options: Options) -> CompletionRequest:
    names = {field.name for field in fields(SamplingParams)}
    sampling: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    others: dict[str, Any] = {name: value for name, value in options.items() if name not in names}
    return CompletionRequest(prefix=prefix, suffix=suffix, sampling=SamplingParams(**sampling), **others)
