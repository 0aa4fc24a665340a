"""Under a rude crowd every accepted request ends, all blocks come back and memory stays flat."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.tiny import make_checkpoint, make_tokenizer

ROOT = Path(__file__).parent.parent.parent

PATHS = {
    "/v1/completions": {"prompt": "def f(", "max_tokens": 24},
    "/infill": {"input_prefix": "def f(", "input_suffix": "\n", "n_predict": 24},
    "/generate": {"inputs": "def f(", "parameters": {"max_new_tokens": 24}},
    "/api/generate": {"prompt": "def f(", "stream": True, "options": {"num_predict": 24}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 24},
}
ALLOWED = {200, 400, 409, 413, 422, 429}


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def client(url: str, seed: int, until: float, statuses: list[int]) -> None:
    """One that sometimes leaves before the answer, in the middle of a stream, or sends nonsense."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        while time.monotonic() < until:
            path, body = rng.choice(list(PATHS.items()))
            body = body | {"stream": rng.random() < 0.5}
            match rng.randrange(8):
                case 0:  # malformed
                    reply = await http.post(path, content=json.dumps(body)[: rng.randrange(9)])
                case 1:  # oversized
                    reply = await http.post(path, content=b" " * 200_000)
                case 2:  # leaves before the answer
                    try:
                        reply = await http.post(path, json=body, timeout=rng.random() * 0.05)
                    except httpx.TimeoutException:
                        continue
                case 3:  # leaves in the middle of a stream
                    async with http.stream("POST", path, json=body | {"stream": True}) as reply:
                        async for _ in reply.aiter_bytes():
                            break
                    statuses.append(reply.status_code)
                    continue
                case _:
                    reply = await http.post(path, json=body)
            statuses.append(reply.status_code)
            assert reply.status_code in ALLOWED, reply.text
            assert reply.content, "an answer or an error"


async def crowd(url: str, num_clients: int, duration_s: float) -> list[int]:
    statuses: list[int] = []
    until = time.monotonic() + duration_s
    await asyncio.gather(*(client(url, seed, until, statuses) for seed in range(num_clients)))
    return statuses


def test_a_short_rude_crowd(start):
    with start(chat_template="default", max_queue=24, max_sequences=16, max_body_bytes=100_000) as running:
        statuses = asyncio.run(crowd(running.url, num_clients=16, duration_s=2))
        running.wait_until_idle(timeout_s=30)
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
    assert statuses.count(200) > 10


@pytest.fixture
def process(tmp_path):
    """A server in a process of its own, whose memory can be watched."""
    make_checkpoint("starcoder2", tmp_path)
    make_tokenizer("starcoder2", tmp_path)
    options = ["--port=0", "--threads=1", "--max-queue=24", "--max-sequences=16", "--chat-template=default"]
    command = [sys.executable, "-m", "starcoder", "serve", "--model", str(tmp_path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process, re.search(r"http://\S+", process.stderr.readline())[0]
        finally:
            process.kill()


def wait_until_idle(url: str) -> None:
    names = ("open_requests", "running_requests", "queue_size", "held_blocks")
    for _ in range(300):
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        if all(f"\nstarcoder_{name} 0.0\n" in text for name in names):
            return
        time.sleep(0.1)
    raise AssertionError(f"never idle: {text}")


@pytest.mark.slow
def test_64_rude_clients_for_a_minute(process):
    server, url = process
    asyncio.run(crowd(url, num_clients=64, duration_s=20))  # pools and caches fill
    wait_until_idle(url)
    before = resident_bytes(server.pid)
    statuses = asyncio.run(crowd(url, num_clients=64, duration_s=60))
    wait_until_idle(url)
    assert statuses.count(200) > 100
    assert {400, 429} <= set(statuses)
    assert resident_bytes(server.pid) - before < 20_000_000
