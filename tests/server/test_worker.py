"""The server stays up: whoever goes, stalls or floods it, the others are served and all blocks come back."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.server.serving import ServerFailure
from tests.tiny import make_checkpoint, make_tokenizer

ROOT = Path(__file__).parent.parent.parent
LONG = {"prompt": "def f", "max_tokens": 400, "ignore_eos": True}


class Slow(Engine):
    """An engine whose steps take a while, or fail when told."""

    pause_s = 0.01
    error: BaseException | None = None

    def step(self):
        if not self.is_idle:
            time.sleep(self.pause_s)
        if self.error:
            raise self.error
        return super().step()


@pytest.fixture
def slow_engine(weights, tokenizer):
    return Slow(weights, tokenizer, settings=EngineSettings(cache_bytes=8_000_000))


def raw_post(url, path, body):
    """A connection on which a request was sent and nothing is read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def wait_for(holds, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.005)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_frees_its_request(start, slow_engine, is_stream):
    with start(engine=slow_engine) as running:
        with raw_post(running.url, "/v1/completions", LONG | {"stream": is_stream}):
            wait_for(lambda: slow_engine.stats().num_running)
        running.wait_until_idle(timeout_s=2)  # far less than 400 steps
        assert slow_engine.stats().generated_tokens < 200


def test_a_client_that_goes_frees_all_its_prompts(start, slow_engine):
    with start(engine=slow_engine) as running:
        with raw_post(running.url, "/v1/completions", LONG | {"prompt": ["a", "b"], "n": 2}):
            wait_for(lambda: slow_engine.stats().num_running == 4)
        running.wait_until_idle(timeout_s=2)


@pytest.mark.parametrize(
    ("path", "body", "find"),
    [
        ("/v1/completions", {"prompt": "a"}, lambda e: e["error"]["type"] == "rate_limit_error"),
        ("/generate", {"inputs": "a"}, lambda e: e["error_type"] == "overloaded"),
        ("/infill", {"input_prefix": "a"}, lambda e: e["error"]["code"] == 429),
        ("/api/generate", {"prompt": "a"}, lambda e: "maximum pending requests" in e["error"]),
    ],
)
def test_a_full_queue_says_when_to_come_again(start, slow_engine, path, body, find):
    with start(engine=slow_engine, max_queue=1, max_sequences=1) as running:
        with raw_post(running.url, "/v1/completions", LONG), raw_post(running.url, "/v1/completions", LONG):
            wait_for(lambda: running.server.worker.num_jobs == 2)
            reply = running.post(path, body)
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1 and find(reply.json())
        running.wait_until_idle(timeout_s=5)
        assert running.post(path, body | {"n_predict": 1, "max_tokens": 1}).status_code == 200


def test_a_stalled_reader_delays_nobody(start, weights, tokenizer):
    engine = Engine(weights, tokenizer, settings=EngineSettings(cache_bytes=8_000_000))
    flood = LONG | {"stream": True, "n": 64, "logprobs": 20}  # megabytes that nobody reads
    with start(engine=engine, write_s=1.0) as running:
        connection = raw_post(running.url, "/v1/completions", flood)
        wait_for(lambda: engine.stats().num_running)
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
        running.wait_until_idle(timeout_s=60)
        connection.close()
    assert engine.stats().generated_tokens < 64 * 400  # it was ended, not finished


def test_the_newest_request_of_a_session_wins(start, slow_engine):
    with start(engine=slow_engine) as running:
        replies = []
        older = threading.Thread(
            target=lambda: replies.append(
                httpx.post(f"{running.url}/v1/completions", json=LONG | {"session": "s"})
            )
        )
        older.start()
        wait_for(lambda: slow_engine.stats().num_running)
        newer = running.post("/v1/completions", LONG | {"session": "s", "max_tokens": 2})
        older.join()
        assert newer.status_code == 200
        assert replies[0].status_code == 409 and "newer request" in replies[0].text
        assert "starcoder_superseded_total 1.0" in running.http.get("/metrics").text


def test_a_stream_that_is_superseded_ends_with_an_error(start, slow_engine):
    with start(engine=slow_engine) as running:
        texts = []
        body = LONG | {"session": "s", "stream": True}
        older = threading.Thread(
            target=lambda: texts.append(httpx.post(f"{running.url}/v1/completions", json=body).text)
        )
        older.start()
        wait_for(lambda: slow_engine.stats().generated_tokens > 2)
        running.post("/v1/completions", LONG | {"session": "s", "max_tokens": 2})
        older.join()
        assert "newer request" in texts[0] and texts[0].endswith("data: [DONE]\n\n")


def test_a_dead_engine_is_told_and_ends_the_process(start, slow_engine, caplog):
    caplog.set_level(logging.CRITICAL, "starcoder.server")
    with pytest.raises(ServerFailure, match="the engine has died: ZeroDivisionError"):
        _serve_until_dead(slow_engine)


def _serve_until_dead(engine):
    """What a server does whose engine dies: requests are answered, health is bad, `run` raises."""
    from starcoder.engine.local import Model
    from starcoder.server.serving import Server
    from starcoder.server.settings import ServerSettings

    server = Server(Model(engine, engine._tokenizer), name="m", settings=ServerSettings(port=0))
    url = server.bind()

    def visit():
        with httpx.Client(base_url=url, trust_env=False) as http:
            assert http.get("/health").status_code == 200
            engine.error = ZeroDivisionError()
            assert http.post("/v1/completions", json=LONG).status_code == 503
            seen.append(http.get("/health").status_code)
            seen.append(http.post("/generate", json={"inputs": "a"}).status_code)

    seen: list[int] = []
    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        server.run()
    finally:
        visitor.join()
        assert seen == [503, 503]


def test_a_stalled_engine_is_told(start, slow_engine):
    slow_engine.pause_s = 0.8
    with start(engine=slow_engine, stall_s=0.2) as running, pytest.raises(httpx.HTTPError):
        with raw_post(running.url, "/v1/completions", LONG):
            wait_for(lambda: running.http.get("/health").status_code == 503)
        for _ in range(200):  # until the server gives up by itself
            running.http.get("/health")
            time.sleep(0.02)


def test_prompts_are_never_logged(start, slow_engine, caplog):
    caplog.set_level(logging.DEBUG)
    with start(engine=slow_engine) as running:
        for body in ({"prompt": "TOPSECRET"}, {"prompt": {"TOPSECRET": 1}}, {"TOPSECRET": 1}):
            for path in ("/v1/completions", "/generate", "/infill"):
                running.post(path, body)
    assert "TOPSECRET" not in "".join(
        r.getMessage() for r in caplog.records if r.name.startswith("starcoder")
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = make_checkpoint("starcoder2", tmp_path_factory.mktemp("checkpoint"))
    make_tokenizer("starcoder2", folder)
    return folder


def test_sigterm_drains(checkpoint):
    """A request that runs is answered whole, then the process ends with 0."""
    command = [
        sys.executable,
        "-m",
        "starcoder",
        "serve",
        "--model",
        checkpoint,
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            line = process.stderr.readline()
            url = re.search(r"http://\S+", line)[0]
            replies = []
            body = LONG | {"prompt": ["a"] * 4, "n": 4, "temperature": 1.0}
            asking = threading.Thread(
                target=lambda: replies.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))
            )
            asking.start()
            wait_for(lambda: "starcoder_running_requests 16.0" in httpx.get(f"{url}/metrics").text, 30)
            process.send_signal(signal.SIGTERM)
            asking.join()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    assert [choice["finish_reason"] for choice in replies[0].json()["choices"]] == ["length"] * 16


def test_a_taken_port_is_told(served, checkpoint, capsys):
    from starcoder.cli import main

    port = served.url.rpartition(":")[2]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["serve", "--model", str(checkpoint), "--port", port]) == 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert "cannot listen on '127.0.0.1', port" in capsys.readouterr().err


def test_answers_do_not_wait_for_acknowledgements(served):
    """Nagle's algorithm and a client's delayed acknowledgement make 40 ms of nothing, every time."""
    body = {"prompt": "a", "max_tokens": 1}
    times = []
    for _ in range(15):
        start = time.perf_counter()
        served.post("/v1/completions", body)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.03


def test_what_follows_an_accepted_completion_is_prepared_while_idle(start, weights, tokenizer):
    settings = EngineSettings(cache_bytes=8_000_000, prepare=True)
    engine = Engine(weights, tokenizer, settings=settings)
    body = {"prompt": "def f(a):\n    ", "suffix": "\n    return a\n", "max_tokens": 8, "session": "s"}
    with start(engine=engine) as running:
        first = running.post("/v1/completions", body).json()["choices"][0]["text"]
        running.wait_until_idle()
        accepted = body | {"prompt": body["prompt"] + first}
        reply = running.post("/v1/completions", accepted)
        assert reply.json()["timings"]["prompt_n"] == 0 and reply.json()["choices"][0]["text"]
        assert engine.stats().num_repeated == 1
        running.wait_until_idle()
        assert "starcoder_typed_through 1.0" in running.http.get("/metrics").text
    alone = Engine(weights, tokenizer, settings=EngineSettings(cache_bytes=8_000_000))
    with start(engine=alone) as running:
        expected = running.post("/v1/completions", accepted).json()["choices"][0]["text"]
    assert reply.json()["choices"][0]["text"] == expected


def test_preparing_gives_way_to_whoever_really_asks(start, weights, tokenizer):
    slow = Slow(weights, tokenizer, settings=EngineSettings(cache_bytes=8_000_000, prepare=True))
    slow.pause_s = 0.02
    body = {"prompt": "def f(", "suffix": ")\n", "max_tokens": 40, "session": "s", "ignore_eos": True}
    with start(engine=slow) as running:
        running.post("/v1/completions", body)
        wait_for(lambda: slow.stats().num_running)  # that nobody asked for
        before = slow.stats().num_steps
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
        assert slow.stats().num_steps - before <= 3
        running.wait_until_idle()
        assert not slow.stats().num_held_blocks
