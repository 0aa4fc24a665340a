"""Structured output: whatever the weights, a finished answer follows its schema, in every dialect."""

import json
import sys

import pytest

from starcoder.request import CompletionRequest, Grammar, SamplingParams, collect

pytest.importorskip("llguidance", reason="llguidance is not installed (extra `structured`)")

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["add", "remove", None]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "is_done": {"type": "boolean"},
    },
    "required": ["kind", "count", "is_done"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}
MESSAGES = [{"role": "user", "content": "Go."}]


def is_valid(text):
    found = json.loads(text)
    return (
        list(found) == ["kind", "count", "is_done"]
        and found["kind"] in ("add", "remove", None)
        and 0 <= found["count"] <= 99
        and isinstance(found["is_done"], bool)
    )


@pytest.mark.parametrize(
    ("path", "body", "find"),
    [
        (
            "/v1/completions",
            {
                "prompt": "x",
                "max_tokens": 80,
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
            },
            lambda reply: reply["choices"][0]["text"],
        ),
        (
            "/v1/chat/completions",
            {
                "messages": MESSAGES,
                "max_tokens": 80,
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
            },
            lambda reply: reply["choices"][0]["message"]["content"],
        ),
        (
            "/completion",
            {"prompt": "x", "n_predict": 80, "json_schema": SCHEMA},
            lambda reply: reply["content"],
        ),
        (
            "/generate",
            {
                "inputs": "x",
                "parameters": {"max_new_tokens": 80, "grammar": {"type": "json", "value": SCHEMA}},
            },
            lambda reply: reply["generated_text"],
        ),
        (
            "/api/generate",
            {"prompt": "x", "stream": False, "format": SCHEMA, "options": {"num_predict": 80}},
            lambda reply: reply["response"],
        ),
        (
            "/api/chat",
            {"messages": MESSAGES, "stream": False, "format": SCHEMA, "options": {"num_predict": 80}},
            lambda reply: reply["message"]["content"],
        ),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_finished_answer_follows_the_schema(idle, path, body, find, temperature):
    for seed in range(5):
        said = {"temperature": temperature, "seed": seed, "ignore_eos": True}
        nested = {"parameters": "parameters", "options": "options"}
        inner = next((name for name in nested if name in body), None)
        asked = body | {inner: body[inner] | said} if inner else body | said
        reply = idle.post(path, asked)
        assert reply.status_code == 200, reply.text
        assert is_valid(find(reply.json())), find(reply.json())


def test_a_regular_expression_and_a_gbnf_grammar_hold(idle):
    regex = {"type": "regex", "value": "[0-9]{4}-[0-9]{2}"}
    text = idle.post(
        "/generate", {"inputs": "x", "parameters": {"grammar": regex, "max_new_tokens": 20}}
    ).json()
    year, month = text["generated_text"].split("-")
    assert len(year) == 4 and len(month) == 2 and (year + month).isdecimal()
    gbnf = 'root ::= "yes" | "no"'
    assert idle.post("/completion", {"prompt": "x", "grammar": gbnf}).json()["content"] in ("yes", "no")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "xml"}}),
        ("/v1/completions", {"prompt": "x", "json_schema": {"type": "nonsense"}}),
        ("/completion", {"prompt": "x", "grammar": "root ::= ("}),
        ("/generate", {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "("}}}),
        ("/api/generate", {"prompt": "x", "format": "xml"}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "other"}),
    ],
)
def test_a_broken_grammar_is_refused(idle, path, body):
    reply = idle.post(path, body)
    assert reply.status_code in (400, 422), reply.text


def test_others_in_the_batch_are_not_touched(oracle, idle):
    free = CompletionRequest(prefix="def f(", sampling=SamplingParams(max_tokens=12, temperature=0.9, seed=3))
    bound = CompletionRequest(
        prefix="def f(",
        sampling=SamplingParams(
            max_tokens=80, temperature=0.9, seed=3, grammar=Grammar("json_schema", json.dumps(SCHEMA))
        ),
    )
    alone = oracle.text(free)
    together = collect(oracle._engine.generate([bound, free, bound]))
    assert together["1"][0].text == alone
    assert together["0"][0].text == together["2"][0].text and is_valid(together["0"][0].text)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_required_tool_is_called(idle, choice):
    body = {
        "messages": MESSAGES,
        "tools": [TOOL],
        "tool_choice": choice,
        "max_tokens": 120,
        "temperature": 1.0,
    }
    reply = idle.post("/v1/chat/completions", body | {"seed": 1}).json()
    [call] = reply["choices"][0]["message"]["tool_calls"]
    assert reply["choices"][0]["finish_reason"] == "tool_calls" and call["function"]["name"] == "look_up"
    assert 0 <= json.loads(call["function"]["arguments"])["n"] <= 9
    events = idle.events("/v1/chat/completions", body | {"seed": 1, "stream": True})
    choices = [json.loads(event)["choices"][0] for event in events if event != "[DONE]"]
    [streamed] = [choice["delta"]["tool_calls"][0] for choice in choices if "tool_calls" in choice["delta"]]
    assert streamed["function"] == call["function"] and choices[-1]["finish_reason"] == "tool_calls"


def test_a_model_may_choose_to_answer_in_text(idle):
    body = {"messages": MESSAGES, "tools": [TOOL], "max_tokens": 12}
    message = idle.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert message["content"] or message.get("tool_calls")
    text = "".join(
        json.loads(event)["choices"][0]["delta"].get("content", "")
        for event in idle.events("/v1/chat/completions", body | {"stream": True})
        if event != "[DONE]"
    )
    assert text == (message["content"] or "")


def test_results_of_tools_are_shown_to_the_model(idle):
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    talk = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    reply = idle.post("/v1/chat/completions", {"messages": talk, "tools": [TOOL], "max_tokens": 2})
    assert reply.status_code == 200, reply.text


def test_without_the_extra_the_refusal_names_it(idle, monkeypatch):
    idle.server.worker.engine._intake.grammars._compiled.clear()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    reply = idle.post("/v1/completions", {"prompt": "x", "response_format": {"type": "json_object"}})
    assert reply.status_code == 400 and "starcoder-kit[structured]" in reply.text
