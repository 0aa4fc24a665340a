"""Mutated bodies in every dialect: never a 5xx, never a request that stays behind."""

import json
import random

import pytest

from tests.server import test_editors
from tests.server.test_dialects import NULLED

SEEDS = [
    *NULLED.items(),
    ("/", {"inputs": "a", "stream": False, "parameters": {"max_new_tokens": 2}}),
    ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 2, "details": True}}),
    ("/invocations", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    ("/infill", test_editors.TestLlamaVim.body | {"n_predict": 2}),
    ("/v1/completions", {"segments": test_editors.TestTabby.segments, "mode": "standard"}),
    (
        "/v1/completions",
        {
            "prompt": ["a", "b"],
            "max_tokens": 2,
            "stream": True,
            "stop": ["x"],
            "logprobs": 2,
            "extras": [{"path": "a.py", "text": "x"}],
            "session": "s",
            "deadline_ms": 500,
            "layout": "spm",
            "suffix": "b",
        },
    ),
    ("/v1/responses", {"input": "a", "max_output_tokens": 2, "tools": [{"type": "function", "name": "f"}]}),
    (
        "/v1/responses",
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}], "max_output_tokens": 2},
    ),
    (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}],
            "tool_choice": {"type": "auto"},
            "max_tokens": 2,
            "stream": True,
        },
    ),
    (
        "/v1beta/models/m:generateContent",
        {
            "contents": [{"parts": [{"text": "a"}]}],
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT"}}]}],
            "generationConfig": {"maxOutputTokens": 2, "stopSequences": ["x"]},
        },
    ),
    ("/apply-template", {"messages": [{"role": "user", "content": "a"}]}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []},
            "max_tokens": 2,
        },
    ),
    ("/v1/fim/render", {"prompt": "a", "max_tokens": 2}),
    ("/tokenize", {"content": "a"}),
    ("/tokenize", {"inputs": "a"}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/v1/events", {"type": "view"}),
    ("/api/show", {"model": "m"}),
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, 2**31, 2**63, -(2**70), "", "a", "π\ud800", "\x00"),
    *([], {}, [[]], [{}], [None], ["a", 1], {"a": {"b": []}}, "<fim_prefix>", "<fim_middle>x<fim_suffix>"),
    *("<|endoftext|>", "<FILL_HERE>", "<FILL_HERE><FILL_HERE>", [0, 1, 2], [400], [[1], [2]], "x" * 5000),
]


def mutated(value: object, rng: random.Random) -> object:
    """The same JSON with something else somewhere; token counts stay small so that it ends soon."""
    match value:
        case dict() if value and rng.random() < 0.9:
            key = rng.choice(list(value))
            other = dict(value)
            if rng.random() < 0.15:
                del other[key]
            elif rng.random() < 0.1:
                other[rng.choice(["n", "top_k", "seed", "stop", "suffix", "echo", "x"])] = rng.choice(VALUES)
            else:
                other[key] = mutated(value[key], rng)
            return other
        case list() if value and rng.random() < 0.6:
            at = rng.randrange(len(value))
            return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def fuzz(running, count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        path, body = rng.choice(SEEDS)
        for _ in range(rng.randint(1, 3)):
            body = mutated(body, rng)
        data = json.dumps(body).encode()
        if rng.random() < 0.05:
            data = data[: rng.randrange(len(data) + 1)]
        reply = running.http.post(path, content=data)
        assert reply.status_code < 500, (path, data, reply.text)
        if reply.status_code >= 400:
            assert reply.json()["error"], (path, data)
    assert running.http.get("/health").status_code == 200
    running.wait_until_idle()


def test_mutated_bodies(start):
    with start(chat_template="default") as running:
        fuzz(running, 400, seed=0)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies(start):
    with start(chat_template="default") as running:
        fuzz(running, 10_000, seed=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the tool's own
def test_schemathesis_finds_no_server_error(start):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error

    with start(chat_template="default") as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        num_operations = 0
        for operation in schema.get_all_operations():

            @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.ok().as_strategy())
            def check(case):
                case.call_and_validate(base_url=running.url, checks=[not_a_server_error], timeout=60)

            check()
            num_operations += 1
        assert num_operations > 25
        running.wait_until_idle(timeout_s=60)
