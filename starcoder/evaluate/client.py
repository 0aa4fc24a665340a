"""A generator that asks a server: OpenAI's `POST /v1/completions`, several requests at a time.

Limits: the server's own tokenizer, end tokens and seeds decide; infilling goes through the `suffix` field,
which this package's server and llama.cpp's know and vLLM refuses. Answers come whole, not in pieces.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import cast

from starcoder.errors import CapacityError, ConfigError, RequestError
from starcoder.request import Chunk, CompletionRequest, FinishReason, Usage

_MAX_STOPS = 4  # that OpenAI's API takes
_BUSY = (429, 502, 503, 504)
_FINISHED = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server, and how it is asked. A `request.Generator`."""

    url: str  # with or without /v1
    model: str = ""
    api_key: str = ""
    concurrency: int = 16
    timeout_s: float = 600.0
    num_retries: int = 5  # of a request that finds the server busy or gone, each after twice the time
    cut: Callable[[CompletionRequest, str], str] | None = None  # where an engine of ours would end an answer

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]:
        """Ask for all requests; the chunks of one request come together, requests in any order.

        Raises:
            ConfigError: no server there, or not one of this kind.
            RequestError: the server refuses a request.
            CapacityError: it stays busy.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            futures = [pool.submit(self._complete, at, request) for at, request in enumerate(requests)]
            for future in as_completed(futures):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def named(self) -> "Endpoint":
        """The same, asking for the first model that the server has unless one is named.

        Raises:
            ConfigError: no server there, or not one of this kind.
        """
        if self.model:
            return self
        match self._ask("models", None):
            case {"data": [{"id": str(name)}, *_]}:
                return replace(self, model=name)
        raise ConfigError(f"{self.url} names no model", "name one with --model")

    def _complete(self, at: int, request: CompletionRequest) -> list[Chunk]:
        sampling = request.sampling
        body: dict[str, object] = {
            "model": self.model,
            "prompt": request.prefix,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": sampling.n,
        }
        if request.suffix is not None:
            body["suffix"] = request.suffix
        stop = [*(["\n"] if sampling.max_lines == 1 else []), *sampling.stop]
        if stop:
            body["stop"] = stop[:_MAX_STOPS]
        if sampling.seed is not None:
            body["seed"] = sampling.seed % 2**31  # larger ones are refused by some servers
        answer = self._ask("completions", body)
        match answer:
            case {"choices": [*choices]} if len(choices) == sampling.n:
                chunks = [_chunk(at, number, choice, answer) for number, choice in enumerate(choices)]
                return [self._ended(request, chunk) for chunk in chunks]
        raise ConfigError(
            f"{self.url} answered without {sampling.n} choices", "is it a server of OpenAI's completions?"
        )

    def _ended(self, request: CompletionRequest, chunk: Chunk) -> Chunk:
        """The answer up to where it should have ended: servers take few stop strings, some take none."""
        text = chunk.text
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        text = text if self.cut is None else self.cut(request, text)
        return chunk if text == chunk.text else replace(chunk, text=text, finish_reason="stop")

    def _ask(self, path: str, body: dict[str, object] | None) -> object:
        base = self.url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{base}/{path}", data=data, headers=headers)
        for attempt in range(self.num_retries + 1):
            if attempt:
                time.sleep(min(2 ** (attempt - 1) / 2, 30))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                    return cast(object, json.load(answer))
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read().decode("utf-8", "replace")
                if error.code not in _BUSY:
                    raise RequestError(f"{base} refused a request: {error.code} {text[:200]}") from None
                reason = f"{error.code}"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = str(error)
            except ValueError:
                raise ConfigError(f"{base} answered no JSON", "is it a server of OpenAI's API?") from None
        if reason.isdecimal():
            raise CapacityError(f"{base} stays busy: {reason}", "lower --concurrency, or wait")
        raise ConfigError(
            f"cannot reach {base}: {reason}", "--endpoint takes a URL such as http://localhost:8000"
        )


def _chunk(at: int, number: int, choice: object, answer: object) -> Chunk:
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        raise ConfigError("a choice has no text", "is it a server of OpenAI's completions?")
    usage = answer.get("usage") if isinstance(answer, dict) else None
    prompt_tokens = usage.get("prompt_tokens", 0) if isinstance(usage, dict) else 0
    return Chunk(
        request_id=str(at),
        index=number,
        text=choice["text"],
        finish_reason=cast("FinishReason", _FINISHED.get(str(choice.get("finish_reason")), "eos")),
        usage=Usage(prompt_tokens=prompt_tokens, cached_tokens=0, queue_ms=0, prefill_ms=0, decode_ms=0),
    )
