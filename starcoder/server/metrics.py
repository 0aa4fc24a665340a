"""Prometheus numbers of one server, under our own names and, where they mean the same, under TGI's.

Counts and times only: nothing of a prompt or a completion is in them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, CompletionRequest
from starcoder.server.codec import HTTPError
from starcoder.server.worker import Worker

_SECONDS = [0.00015 * 1.5**power for power in range(35)]  # Source: TGI's buckets (serving facts 1.3)
_TOKENS = [2.0**power for power in range(17)]

# Ours -> TGI's.
_ALIASES = {
    "starcoder_requests_total": "tgi_request_count",
    "starcoder_requests_succeeded_total": "tgi_request_success",
    "starcoder_requests_failed_total": "tgi_request_failure",
    "starcoder_request_duration_seconds": "tgi_request_duration",
    "starcoder_queue_seconds": "tgi_request_queue_duration",
    "starcoder_inference_seconds": "tgi_request_inference_duration",
    "starcoder_time_per_output_token_seconds": "tgi_request_mean_time_per_token_duration",
    "starcoder_generated_tokens": "tgi_request_generated_tokens",
    "starcoder_prompt_tokens": "tgi_request_input_length",
    "starcoder_max_tokens": "tgi_request_max_new_tokens",
    "starcoder_queue_size": "tgi_queue_size",
    "starcoder_running_requests": "tgi_batch_current_size",
}


@dataclass
class RequestStats:
    """What is known of a request once its body has been read."""

    is_stream: bool = False


class Metrics:
    """Counters and histograms; `worker` is read when they are asked for."""

    def __init__(self, worker: Worker | None = None):
        self.worker = worker
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"starcoder_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: list[float]) -> Histogram:
            return Histogram(f"starcoder_{name}", text, buckets=buckets, registry=self._registry)

        self._requests = counter("requests", "Completion requests")
        self._succeeded = counter("requests_succeeded", "Requests that were answered or began to stream")
        self._failed = counter("requests_failed", "Requests that were refused or failed", "err")
        self._superseded = counter("superseded", "Samples that ended for a newer one of their session")
        self._prefilled = counter("prefilled_tokens", "Prompt tokens that were computed")
        self._cached = counter("cached_tokens", "Prompt tokens that came from the prefix cache")
        self._dropped = counter("dropped_characters", "Text for which the context had no room")
        self._trimmed = counter("trimmed", "Samples that a postprocess rule took text away from", "rule")
        self._events = counter("completions", "What editors did with completions", "event")
        self._duration = histogram(
            "request_duration_seconds", "From a request's start to its answer", _SECONDS
        )
        self._queue = histogram("queue_seconds", "Time a sample waited", _SECONDS)
        self._inference = histogram("inference_seconds", "Prefill and decode of a sample", _SECONDS)
        self._ttft = histogram("time_to_first_token_seconds", "Queue and prefill of a sample", _SECONDS)
        self._tpot = histogram("time_per_output_token_seconds", "Between two tokens of a sample", _SECONDS)
        self._prompt = histogram("prompt_tokens", "Length of a prompt", _TOKENS)
        self._generated = histogram("generated_tokens", "Length of a completion", _TOKENS)
        self._limits = histogram("max_tokens", "Tokens asked for at most", _TOKENS)
        self._registry.register(_Engine(self))

    @contextmanager
    def counting(self) -> Iterator[RequestStats]:
        """Counts a request, its time and how it ended."""
        start, stats = time.perf_counter(), RequestStats()
        self._requests.inc()
        try:
            yield stats
        except StarcoderError as error:
            self._failed.labels(_reason(error)).inc()
            raise
        except ClientDisconnect:
            self._failed.labels("dropped").inc()
            raise
        self._succeeded.inc()
        if not stats.is_stream:
            self._duration.observe(time.perf_counter() - start)

    def observe(self, request: CompletionRequest, chunk: Chunk, num_tokens: int) -> None:
        """A sample has ended with this chunk, after `num_tokens` tokens; called in the worker's thread."""
        usage = chunk.usage
        if usage is None:
            return
        for rule in chunk.trimmed:
            self._trimmed.labels(rule).inc()
        if chunk.index == 0:
            self._prefilled.inc(usage.prompt_tokens - usage.cached_tokens)
            self._cached.inc(usage.cached_tokens)
            self._dropped.inc(usage.dropped_characters)
        self._prompt.observe(usage.prompt_tokens)
        self._limits.observe(request.sampling.max_tokens)
        self._queue.observe(usage.queue_ms / 1e3)
        self._generated.observe(num_tokens)
        if num_tokens:
            self._ttft.observe((usage.queue_ms + usage.prefill_ms) / 1e3)
            self._inference.observe((usage.prefill_ms + usage.decode_ms) / 1e3)
        if num_tokens > 1:
            self._tpot.observe(usage.decode_ms / 1e3 / (num_tokens - 1))

    def count_superseded(self) -> None:
        """A sample was ended by a newer request of its session."""
        self._superseded.inc()

    def count_event(self, event: str) -> None:
        """An editor showed, took or dismissed a completion."""
        self._events.labels(event).inc()

    def text(self) -> str:
        """Everything in the text format of Prometheus."""
        return generate_latest(_WithAliases(self._registry)).decode("utf-8")


class _Engine(Collector):
    """The state of the engine."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        worker = self._metrics.worker
        if worker is None:
            return
        stats = worker.engine.stats()
        numbers = {
            "queue_size": ("Sequences that wait", stats.num_waiting),
            "running_requests": ("Sequences that run", stats.num_running),
            "open_requests": ("HTTP requests in the engine", worker.num_jobs),
            "blocks": ("Blocks of the key/value cache", stats.num_blocks),
            "held_blocks": ("Blocks that running sequences hold", stats.num_held_blocks),
            "engine_steps": ("Steps of the engine", stats.num_steps),
            "preemptions": ("Sequences that gave their blocks back", stats.num_preemptions),
            "computed_tokens": ("Tokens that went through the network", stats.computed_tokens),
            "decoded_tokens": ("Tokens that were sampled", stats.generated_tokens),
            "drafted_tokens": ("Tokens that were guessed and checked", stats.drafted_tokens),
            "accepted_tokens": ("Guessed tokens that were right", stats.accepted_tokens),
            "sessions": ("Editing sessions that are remembered", stats.num_sessions),
            "typed_through": ("Requests of sessions answered without the model", stats.num_repeated),
            "healthy": ("Whether requests can be served", int(worker.trouble is None)),
        }
        for name, (text, value) in numbers.items():
            metric = Metric(f"starcoder_{name}", text, "gauge")
            metric.add_sample(f"starcoder_{name}", {}, value)
            yield metric


class _WithAliases(Collector):
    """The same metrics, and those that TGI has as well once more under its names."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            name = _ALIASES.get(metric.name + ("_total" if metric.type == "counter" else ""))
            if name is None:
                continue
            is_counter = metric.type == "counter"
            alias = Metric(name, f"As {metric.name}", "unknown" if is_counter else metric.type)
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue
                ending = "" if is_counter else sample.name.removeprefix(metric.name)
                alias.add_sample(name + ending, sample.labels, sample.value)
            yield alias


def _reason(error: StarcoderError) -> str:
    """TGI's word for it."""
    if isinstance(error, CapacityError):
        return "overloaded"
    status = error.status if isinstance(error, HTTPError) else 400
    return {499: "dropped", 409: "superseded"}.get(status, "validation" if status < 500 else "generation")
