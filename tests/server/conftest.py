"""A real server on a free port of this machine, with a tiny random model behind it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from starcoder.engine.engine import Engine
from starcoder.engine.local import Model
from starcoder.engine.settings import EngineSettings
from starcoder.request import Completion, CompletionRequest, collect
from starcoder.server.serving import Server
from starcoder.server.settings import ServerSettings
from tests.tiny import make_model, make_tokenizer

CONTEXT = 512


class Oracle:
    """The same weights in an engine of their own, asked without a server."""

    def __init__(self, weights, tokenizer):
        self.tokenizer = tokenizer
        self._engine = Engine(weights, tokenizer, settings=EngineSettings(cache_bytes=4_000_000))

    def samples(self, request: CompletionRequest) -> Sequence[Completion]:
        return collect(self._engine.generate([request]))["0"]

    def text(self, request: CompletionRequest) -> str:
        return self.samples(request)[0].text


@dataclass
class Running:
    """A server that runs, and clients of it."""

    server: Server
    url: str
    http: httpx.Client

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def events(self, path: str, body: object, prefix: str = "data: ") -> list[str]:
        """What the events of a stream carry; every line must be an event or a blank between two."""
        reply = self.post(path, body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.text.split("\n")
        assert all(not line or line.startswith(prefix) for line in lines)
        return [line[len(prefix) :] for line in lines if line]

    def wait_until_idle(self, timeout_s: float = 10.0) -> None:
        """Blocks, jobs and sequences are all gone, and nothing is left to begin."""
        end = time.monotonic() + timeout_s
        worker = self.server.worker
        while True:
            stats = worker.engine.stats()
            held = (worker.num_jobs, stats.num_running, stats.num_waiting, stats.num_held_blocks)
            if held == (0, 0, 0, 0) and worker.engine.is_idle:
                return
            assert time.monotonic() < end, f"jobs, running, waiting, blocks: {held}"
            time.sleep(0.005)


Start = Callable[..., Iterator[Running]]


@pytest.fixture(scope="session")
def weights():
    return make_model("starcoder2", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer("starcoder2", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def oracle(weights, tokenizer) -> Oracle:
    return Oracle(weights, tokenizer)


@pytest.fixture(scope="session")
def start(weights, tokenizer):
    """Starts servers: `with start(max_queue=2) as running`."""

    @contextmanager
    def begin(
        *,
        chat_template: str | None = None,
        folder: Path | None = None,
        engine=None,
        attribution=None,
        **settings,
    ) -> Iterator[Running]:
        settings = ServerSettings(**{"port": 0, "default_max_tokens": 16} | settings)
        engine = engine or Engine(
            weights,
            tokenizer,
            settings=EngineSettings(
                cache_bytes=8_000_000, max_sequences=settings.max_sequences, max_queue=1000
            ),
        )
        server = Server(
            Model(engine, tokenizer),
            name="tiny/starcoder2",
            folder=folder,
            chat_template=chat_template,
            attribution=attribution,
            settings=settings,
        )
        url = server.bind()
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            running = Running(server, url, http)
            running.http.get("/health").raise_for_status()
            yield running
        server.stop()
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server does not stop"

    return begin


@pytest.fixture(scope="session")
def served(start):
    """One server for all tests that change nothing; a chat template makes it answer everywhere."""
    with start(chat_template="default") as running:
        yield running


@pytest.fixture
def idle(served):
    """The shared server, which must be idle again after the test."""
    yield served
    served.wait_until_idle()
