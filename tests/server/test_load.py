"""Under a rude crowd every accepted request ends, all blocks come back and memory stays flat."""

import asyncio
import json
import os
import random
import time

import httpx
import pytest

PATHS = {
    "/v1/completions": {"prompt": "def f(", "max_tokens": 24},
    "/infill": {"input_prefix": "def f(", "input_suffix": "\n", "n_predict": 24},
    "/generate": {"inputs": "def f(", "parameters": {"max_new_tokens": 24}},
    "/api/generate": {"prompt": "def f(", "stream": True, "options": {"num_predict": 24}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 24},
}
ALLOWED = {200, 400, 409, 413, 422, 429}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
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


def run_crowd(start, *, num_clients: int, duration_s: float) -> tuple[list[int], int]:
    with start(chat_template="default", max_queue=24, max_sequences=16, max_body_bytes=100_000) as running:
        asyncio.run(crowd(running.url, num_clients, duration_s / 4))  # warm: pools and caches fill
        running.wait_until_idle(timeout_s=30)
        before = resident_bytes()
        statuses = asyncio.run(crowd(running.url, num_clients, duration_s))
        running.wait_until_idle(timeout_s=30)
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
        return statuses, resident_bytes() - before


def test_a_short_rude_crowd(start):
    statuses, _ = run_crowd(start, num_clients=16, duration_s=2)
    assert statuses.count(200) > 10


@pytest.mark.slow
def test_64_rude_clients_for_a_minute(start):
    statuses, grown = run_crowd(start, num_clients=64, duration_s=60)
    assert statuses.count(200) > 100
    assert {413, 400} <= set(statuses)
    assert grown < 40_000_000
