"""Answers a request on stdout: as a stream of text, as several samples, or as one JSON document."""

import json
import os
import sys
import time
from collections.abc import Iterator

from starcoder.cli import options
from starcoder.engine.settings import ModelSettings
from starcoder.errors import ConfigError
from starcoder.request import Chunk, Completion, CompletionRequest, collect

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# A model may generate any text; on a terminal its control characters are shown, not obeyed.
SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: "\u2421"}


def answer(
    request: CompletionRequest, model: ModelSettings, output: options.OutputOptions, *, echo: bool | None
) -> None:
    """Load the model, run the request and print what comes.

    Raises:
        StarcoderError: the model cannot be loaded, or the request cannot be served.
    """
    if request.sampling.logprobs is not None and not output.json:
        raise ConfigError("--logprobs shows only in JSON", "add --json")
    output.start_logging()
    start = time.perf_counter()
    loaded = options.load(model)
    load_ms = 1e3 * (time.perf_counter() - start)
    chunks = loaded.generate([request])
    if not output.json and request.sampling.n == 1:
        chunks = _printed(chunks, request, echo=echo)
    (samples,) = collect(chunks).values()
    total_ms = 1e3 * (time.perf_counter() - start)
    if output.json:
        print(json.dumps(document(samples, load_ms=load_ms, total_ms=total_ms), ensure_ascii=False))
    elif request.sampling.n > 1:
        _print_samples(samples)
    if output.verbose:
        _print_report(samples, load_ms=load_ms)


def document(samples: list[Completion], *, load_ms: float, total_ms: float) -> dict[str, object]:
    """The JSON of an answer: the first sample's fields, and with more than one all in `completions`."""
    usage = samples[0].usage
    out = _sample(samples[0]) | {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "timings_ms": {
            "load": round(load_ms, 3),
            "queue": round(usage.queue_ms, 3),
            "prefill": round(usage.prefill_ms, 3),
            "decode": round(usage.decode_ms, 3),
            "total": round(total_ms, 3),
        },
    }
    if usage.dropped_characters:
        out["dropped_characters"] = usage.dropped_characters
    if len(samples) > 1:
        out["completions"] = [_sample(sample) for sample in samples]
    return out


def _sample(sample: Completion) -> dict[str, object]:
    out: dict[str, object] = {
        "index": sample.index,
        "text": sample.text,
        "tokens": sample.tokens,
        "finish_reason": sample.finish_reason,
    }
    if sample.stop is not None:
        out["stop"] = sample.stop
    if sample.logprobs:
        out["logprobs"] = [
            {"token": item.token, "text": item.text, "logprob": item.logprob, "top": item.top}
            for item in sample.logprobs
        ]
    return out


def _printed(chunks: Iterator[Chunk], request: CompletionRequest, *, echo: bool | None) -> Iterator[Chunk]:
    """The same chunks, printed as they pass: on a terminal between the dimmed prompt, in a pipe alone."""
    terminal = sys.stdout.isatty()
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    echo = terminal if echo is None else echo

    def write(text: str, *, dim: bool = False) -> None:
        text = text.translate(SHOWN) if terminal else text
        sys.stdout.write(f"{_DIM}{text}{_PLAIN}" if dim and color and text else text)
        sys.stdout.flush()

    if echo:
        write(request.prefix, dim=True)
    last = "\n"
    for chunk in chunks:
        write(chunk.text)
        last = chunk.text or last
        yield chunk
    if echo and request.suffix:
        write(request.suffix, dim=True)
        last = request.suffix
    if terminal and not last.endswith("\n"):
        write("\n")


def _print_samples(samples: list[Completion]) -> None:
    terminal = sys.stdout.isatty()
    for sample in samples:
        text = sample.text.translate(SHOWN) if terminal else sample.text
        print(f"--- {sample.index + 1} of {len(samples)}")
        print(text, end="" if text.endswith("\n") else "\n")


def _print_report(samples: list[Completion], *, load_ms: float) -> None:
    usage = samples[0].usage
    if usage.dropped_characters:
        print(f"{usage.dropped_characters} characters of the prompt did not fit the context", file=sys.stderr)
    num_tokens = sum(len(sample.tokens) for sample in samples)
    decode_ms = max(sample.usage.decode_ms for sample in samples)
    rate = (num_tokens - len(samples)) / decode_ms * 1e3 if decode_ms else 0.0
    print(
        f"loaded in {load_ms:.0f} ms; {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)"
        f" in {usage.prefill_ms:.0f} ms; {num_tokens} tokens in {decode_ms:.0f} ms, {rate:.1f}/s;"
        f" finish: {', '.join(sample.finish_reason for sample in samples)}",
        file=sys.stderr,
    )
