"""How fast a model runs through the engine on this machine, beside how fast the machine reads memory."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from starcoder import plan
from starcoder.config import ModelConfig
from starcoder.engine.local import Model
from starcoder.engine.settings import BenchSettings
from starcoder.kernels import native
from starcoder.request import Usage

_DECODE_PROMPT = 8  # tokens before decoding, so that reading the cache costs next to nothing
_BUFFER_BYTES = 256 << 20  # far more than a processor caches


@dataclass(frozen=True, slots=True)
class Spread:
    """A median of several rounds, with the least and the largest."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured; tokens per second and gigabytes (10^9 bytes) per second."""

    rounds: int
    threads: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    read_bytes_per_token: int  # weights and cache
    decode_gb_per_s: Spread
    machine_gb_per_s: Spread | None  # read by the same threads, in the same rounds; None beside a GPU
    share_of_bandwidth: Spread | None
    peak_bytes: int | None  # resident memory of the process at most; None where the system does not tell


def measure(
    model: Model,
    config: ModelConfig,
    weights: plan.Weights,
    settings: BenchSettings = BenchSettings(),
) -> BenchReport:
    """Time rounds of prefill, decode and plain reading, in turn, after one that warms up.

    Contexts shorter than asked for get shorter prompts. No prompt is in the prefix cache.
    """
    new_tokens = min(settings.max_tokens, config.max_positions // 4)
    prompt_tokens = min(settings.prompt_tokens, config.max_positions // 2)
    _prefill(model, 0, prompt_tokens)
    _decode(model, 0, new_tokens)
    peak_bytes = _peak_bytes()  # before the buffer that only measures the machine
    on_cpu = model.engine.device.type == "cpu"
    buffer = torch.ones(_BUFFER_BYTES, dtype=torch.uint8) if on_cpu else None
    prefills, decodes, machine = [], [], []
    for number in range(1, settings.rounds + 1):
        prefills.append(_prefill(model, number, prompt_tokens))
        decodes.append(_decode(model, number, new_tokens))
        if buffer is not None:
            machine.append(_read(buffer))
    read_bytes = plan.read_bytes(config, weights)
    read_bytes += plan.cache_bytes(config, weights, _DECODE_PROMPT + new_tokens // 2)
    rates = [(usage.tokens - 1) / usage.ms * 1e3 for usage in decodes]
    shares = [rate * read_bytes / 1e9 / peak for rate, peak in zip(rates, machine, strict=False)]
    return BenchReport(
        rounds=settings.rounds,
        threads=torch.get_num_threads(),
        prompt_tokens=prefills[0].tokens,
        new_tokens=decodes[0].tokens,
        prefill_tokens_per_s=Spread.of([usage.tokens / usage.ms * 1e3 for usage in prefills]),
        decode_tokens_per_s=Spread.of(rates),
        read_bytes_per_token=read_bytes,
        decode_gb_per_s=Spread.of([rate * read_bytes / 1e9 for rate in rates]),
        machine_gb_per_s=Spread.of(machine) if machine else None,
        share_of_bandwidth=Spread.of(shares) if shares else None,
        peak_bytes=peak_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    tokens: int
    ms: float


def _prefill(model: Model, number: int, tokens: int) -> _Timed:
    """Tokens computed, and the time to the first token that follows them."""
    usage = _usage(model, number, tokens, 1)
    return _Timed(usage.prompt_tokens - usage.cached_tokens, usage.prefill_ms)


def _decode(model: Model, number: int, tokens: int) -> _Timed:
    """Tokens made, and the time from the first to the last."""
    return _Timed(tokens, _usage(model, number, _DECODE_PROMPT, tokens).decode_ms)


def _usage(model: Model, number: int, prompt_tokens: int, new_tokens: int) -> Usage:
    text = Path(__file__).read_text("utf-8") * (1 + prompt_tokens // 512)
    # Each round's text begins differently, so nothing of it is in the prefix cache.
    prompt = model.tokenizer.encode(f"{number} {new_tokens}\n{text}")[:prompt_tokens]
    completion = model.complete(model.tokenizer.decode(prompt), max_tokens=new_tokens, ignore_eos=True)
    assert len(completion.tokens) == new_tokens, "the end of text is ignored and nothing else stops"
    return completion.usage


def _read(buffer: torch.Tensor) -> float:
    """Gigabytes per second at which all threads together read memory."""
    library = native.library()
    if library is not None:
        return float(library.sc_bandwidth(torch.get_num_threads(), buffer.data_ptr(), buffer.nbytes)) / 1e9
    from time import perf_counter

    start = perf_counter()
    buffer.view(torch.int64).sum()
    return buffer.nbytes / (perf_counter() - start) / 1e9


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
