"""Every tool list that agents send is taken, and every call that comes back is one of its tools'."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.errors import RequestError
from starcoder.request import CompletionRequest, Grammar, SamplingParams, collect
from starcoder.server import schemas
from starcoder.server.codec import HTTPError
from starcoder.server.tools import Tools
from tests.tiny import make_model

pytest.importorskip("llguidance", reason="llguidance is not installed (extra `structured`)")
jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis")

STEP = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "of": {"$ref": "#/$defs/Name"}},
    "required": ["n"],
}
NESTED = {
    "type": "object",
    "$defs": {"Step": STEP, "Name": {"enum": ["a", "b"]}},
    "properties": {
        "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}, "minItems": 1, "maxItems": 2},
        "last": {"$ref": "#/properties/steps"},
    },
    "required": ["steps"],
}
UNHELD = {
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "not": {"not": {"type": "string"}, "type": ["integer", "string"]},
    "format": {"type": "string", "format": "uri-template"},
    "pattern": {"type": "string", "pattern": r"^(?!\.)(?!.*\.\.)([a-z]*)@[a-z]*$"},
    "if": {"type": "integer", "if": {"minimum": 3}, "then": {"maximum": 5}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
}
MESSAGES = [{"role": "user", "content": "Go."}]


@pytest.fixture(scope="module")
def wide(start, tokenizer):
    """A server whose context holds the lists of tools that agents send."""
    weights = make_model("starcoder2", max_position_embeddings=4096)
    engine = Engine(weights, tokenizer, settings=EngineSettings(cache_bytes=16_000_000))
    with start(chat_template="default", engine=engine) as running:
        yield running


def tool(parameters=None, name="plan", **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def chat(running, **body):
    return running.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 200, "seed": 3, **body})


@pytest.mark.parametrize("path", ["$defs", "definitions"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_nested_schema_is_held_to(wide, path, choice):
    schema = json.loads(json.dumps(NESTED).replace("$defs", path))
    for seed in range(3):
        body = {"tools": [tool(schema), tool(NESTED, "other")], "tool_choice": choice, "temperature": 1.2}
        reply = chat(wide, **body | {"seed": seed, "parallel_tool_calls": False})
        assert reply.status_code == 200, reply.text
        for call in reply.json()["choices"][0]["message"].get("tool_calls", []):
            assert jsonschema_rs.is_valid(NESTED, json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [({"$ref": "#"}, "#/$defs/t"), ({"$ref": "#/$defs/a"}, "#/$defs/t/$defs/a")],
)
def test_only_references_move(schema, pointer):
    around = {"properties": {"$ref": schema, "x": {"const": {"$ref": "#"}, "default": {"$ref": "#"}}}}
    moved = schemas.rebased(around, "#/$defs/t")
    assert moved["properties"]["$ref"] == {"$ref": pointer}
    assert moved["properties"]["x"] == around["properties"]["x"]


@pytest.mark.parametrize("keyword", UNHELD)
def test_what_cannot_be_held_to_is_dropped_and_named(wide, caplog, keyword):
    schemas._log_once.cache_clear()
    schema = {"type": "object", "properties": {"x": UNHELD[keyword]}}
    with caplog.at_level(logging.WARNING):
        reply = chat(wide, tools=[tool(schema), tool(NESTED, "other")], max_tokens=3)
    assert reply.status_code == 200, reply.text
    assert keyword in caplog.text and "'plan'" in caplog.text


@pytest.mark.parametrize("keyword", UNHELD)
def test_what_is_strict_is_refused_by_its_name(wide, keyword):
    schema = {"type": "object", "properties": {"x": UNHELD[keyword]}}
    reply = chat(wide, tools=[tool(schema, strict=True)])
    assert reply.status_code == 400 and "'plan'" in reply.text and keyword in reply.text, reply.text
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    reply = chat(wide, response_format=form)
    assert reply.status_code == 400 and keyword in reply.text, reply.text
    form["json_schema"]["strict"] = False
    assert chat(wide, response_format=form, max_tokens=2).status_code == 200


def test_a_schema_that_is_none_leaves_the_arguments_free(wide):
    assert chat(wide, tools=[tool({"type": "nonsense"})], max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, {"plan", "other"}),
        ("auto", {"plan", "other"}),
        ("required", {"plan", "other"}),
        ({"type": "function", "function": {"name": "other"}}, {"other"}),
        ({"type": "function", "name": "other"}, {"other"}),
        ("other", {"other"}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool(None, "other")]}},
            {"other"},
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "plan"}]},
            {"plan"},
        ),
        ({"type": "tool", "name": "plan"}, {"plan"}),
        ({"type": "any"}, {"plan", "other"}),
        ({"type": "web_search"}, {"plan", "other"}),
    ],
)
def test_every_form_of_choice(choice, names):
    tools = Tools.read([tool(None), tool(None, "other"), {"type": "web_search"}], choice)
    assert {function.name for function in tools.functions} == names


@pytest.mark.parametrize("choice", ["none", {"type": "none"}])
def test_no_call_where_none_is_wanted(choice):
    assert Tools.read([tool(None)], choice) is None
    assert Tools.read([{"type": "web_search"}, {"type": "custom", "name": "grep"}]) is None


@pytest.mark.parametrize("choice", [5, {"name": 1}, "nobody", {"type": "function", "name": "nobody"}])
def test_a_choice_of_nothing_is_refused(choice):
    with pytest.raises(HTTPError, match="tool_choice"):
        Tools.read([tool(None)], choice)


def test_several_calls_in_one_answer():
    tools = Tools.read([tool(NESTED), tool(None, "other")])
    text = '{"name": "plan", "arguments": {"steps": []}}\n{"name": "other", "arguments": {}}'
    assert [(call.name, call.arguments) for call in tools.calls(text)] == [
        ("plan", {"steps": []}),
        ("other", {}),
    ]
    assert [call.name for call in tools.calls(text[:-3])] == ["plan"]
    assert tools.calls("Hello {") == [] and tools.calls('{"name": "x", "arguments": {}}') == []
    assert len({call.id for call in tools.calls(text)}) == 2


def test_legacy_functions_are_called(wide):
    body = {"functions": [{"name": "plan", "parameters": NESTED}], "function_call": {"name": "plan"}}
    choice = chat(wide, **body, temperature=1.0).json()["choices"][0]
    assert choice["finish_reason"] == "function_call" and choice["message"]["content"] is None
    assert jsonschema_rs.is_valid(NESTED, json.loads(choice["message"]["function_call"]["arguments"]))


def test_ollama_calls_tools(wide):
    body = {"messages": MESSAGES, "tools": [tool(NESTED)], "options": {"num_predict": 100, "seed": 1}}
    whole = wide.post("/api/chat", body | {"stream": False}).json()["message"]
    lines = wide.post("/api/chat", body).text.splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert "".join(message["content"] for message in messages) == whole["content"]
    assert [m["tool_calls"] for m in messages if "tool_calls" in m] == [
        whole[key] for key in ("tool_calls",) if key in whole
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "a", "json_schema": {"$ref": "#"}}),
        ("/completion", {"prompt": "a", "grammar": 'root ::= "a"{200000}'}),
        ("/generate", {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": r"[^\s\S]"}}}),
        (
            "/v1/completions",
            {
                "prompt": "a",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
                    },
                },
            },
        ),
    ],
)
def test_a_grammar_that_fails_is_an_error_not_an_answer(idle, path, body):
    reply = idle.post(path, body)
    assert reply.status_code in (400, 422), reply.text
    if path != "/generate":
        text = idle.post(path, body | {"stream": True}).text
        assert "error" in text and '"stop_type":"eos"' not in text and '"finish_reason":"stop"' not in text


def schema_strategy():
    """Random schemas of what llguidance holds to, small enough for a random model to finish."""
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
            st.integers(-50, 50),
            st.integers(0, 30),
        ),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 4)),
        st.builds(
            lambda values: {"enum": values},
            st.lists(st.sampled_from(["a", 1, None, True, "b c"]), min_size=1, max_size=3, unique_by=repr),
        ),
        st.just({"type": "string", "pattern": "^[a-c]{2}$"}),
    )

    def nest(inner):
        names = st.lists(st.sampled_from("abcd"), unique=True, max_size=3)
        objects = st.builds(
            lambda named, required, is_open: {
                "type": "object",
                "properties": named,
                "required": [name for name in named if name in required],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
            names,
            st.booleans(),
        )
        arrays = st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 1),
            st.integers(0, 2),
        )
        return st.one_of(
            objects, arrays, st.builds(lambda many: {"anyOf": many}, st.lists(inner, min_size=1, max_size=2))
        )

    return st.recursive(leaves, nest, max_leaves=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schema_strategy(), seed=st.integers(0, 2**31))
def test_a_finished_answer_is_valid(oracle, schema, seed):
    sampling = SamplingParams(
        max_tokens=120, temperature=1.3, seed=seed, grammar=schemas.json_grammar(schema)
    )
    try:
        [sample] = oracle.samples(CompletionRequest(prefix="x", sampling=sampling))
    except RequestError as error:
        assert "not valid" in str(error)
        return
    if sample.finish_reason == "eos":
        assert jsonschema_rs.is_valid(schema, json.loads(sample.text)), (schema, sample.text)


def test_a_limit_of_the_parser_ends_a_sample_as_an_error(oracle):
    grammar = Grammar("gbnf", 'root ::= "a"{60000}')
    request = CompletionRequest(prefix="x", sampling=SamplingParams(max_tokens=30, grammar=grammar))
    try:
        [sample] = collect(oracle._engine.generate([request]))["0"]
    except RequestError:
        return
    assert sample.finish_reason in ("error", "length")
