"""The dialects of agents: OpenAI's responses, Anthropic's messages, Gemini's contents, and small routes."""

import json

import openai
import pytest

from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from tests.tiny import make_model

pytest.importorskip("llguidance", reason="llguidance is not installed (extra `structured`)")

PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
}
TEXT = "Add two numbers."


@pytest.fixture(scope="module")
def wide(start, tokenizer):
    weights = make_model("starcoder2", max_position_embeddings=4096)
    engine = Engine(weights, tokenizer, settings=EngineSettings(cache_bytes=16_000_000))
    with start(chat_template="default", engine=engine) as running:
        yield running


def events_of(reply):
    """Names and documents of server-sent events."""
    assert reply.status_code == 200, reply.text
    found = []
    for block in reply.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if lines:
            found.append((lines.get("event"), json.loads(lines["data"])))
    return found


# The same question in every dialect: body without and with tools, the answer's text, and its calls.
def openai_chat(running, **more):
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 30, "temperature": 0, **more}
    return running.post("/v1/chat/completions", body).json()["choices"][0]["message"]


def test_every_dialect_says_the_same(wide):
    expected = openai_chat(wide)["content"]
    responses = wide.post("/v1/responses", {"input": TEXT, "max_output_tokens": 30, "temperature": 0}).json()
    assert responses["output"][0]["content"][0]["text"] == expected
    assert responses["usage"]["output_tokens"] <= 30 and responses["object"] == "response"
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 30, "temperature": 0}
    messages = wide.post("/v1/messages", body).json()
    assert messages["content"] == [{"type": "text", "text": expected}] and messages["role"] == "assistant"
    contents = {"contents": [{"role": "user", "parts": [{"text": TEXT}]}]}
    limit = {"generationConfig": {"maxOutputTokens": 30, "temperature": 0}}
    gemini = wide.post("/v1beta/models/any:generateContent", contents | limit).json()
    assert gemini["candidates"][0]["content"] == {"role": "model", "parts": [{"text": expected}]}


def test_streams_say_what_wholes_say(wide):
    expected = openai_chat(wide)["content"]
    body = {"input": TEXT, "max_output_tokens": 30, "temperature": 0, "stream": True}
    events = events_of(wide.post("/v1/responses", body))
    assert [name for name, _ in events] == [document["type"] for _, document in events]
    assert [document["sequence_number"] for _, document in events] == list(range(len(events)))
    assert events[0][0] == "response.created" and events[-1][0] in (
        "response.completed",
        "response.incomplete",
    )
    assert "".join(d["delta"] for n, d in events if n == "response.output_text.delta") == expected
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == expected
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 30, "temperature": 0}
    events = events_of(wide.post("/v1/messages", body | {"stream": True}))
    assert [events[0][0], events[-2][0], events[-1][0]] == ["message_start", "message_delta", "message_stop"]
    assert "".join(d["delta"]["text"] for n, d in events if n == "content_block_delta") == expected
    contents = {"contents": [{"parts": [{"text": TEXT}]}]}
    limit = {"generationConfig": {"maxOutputTokens": 30, "temperature": 0}}
    path = "/v1beta/models/any:streamGenerateContent?alt=sse"
    events = events_of(wide.post(path, contents | limit))
    parts = [d["candidates"][0]["content"]["parts"][0]["text"] for _, d in events]
    assert "".join(parts) == expected and "usageMetadata" in events[-1][1]


@pytest.mark.parametrize("is_stream", [False, True])
def test_responses_call_tools_and_skip_others(wide, is_stream):
    tools = [
        {"type": "function", "name": "add", "parameters": PARAMETERS, "strict": False},
        {"type": "web_search"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "local_shell"},
    ]
    talk = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "input_text", "text": TEXT}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"n": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    body = {
        "instructions": "You add.",
        "input": talk,
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "seed": 1,
        "max_output_tokens": 200,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "stream": is_stream,
    }
    reply = wide.post("/v1/responses", body)
    response = events_of(reply)[-1][1]["response"] if is_stream else reply.json()
    [call] = response["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "add", "completed")
    assert 0 <= json.loads(call["arguments"])["n"] <= 9


@pytest.mark.parametrize("is_stream", [False, True])
def test_messages_call_tools(wide, is_stream):
    body = {
        "system": [{"type": "text", "text": "You add.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"n": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "2"}]}
                ],
            },
        ],
        "tools": [
            {"name": "add", "input_schema": PARAMETERS},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "temperature": 1.0,
        "seed": 1,
        "max_tokens": 200,
        "stream": is_stream,
    }
    reply = wide.post("/v1/messages", body)
    if is_stream:
        events = events_of(reply)
        text = "".join(d["delta"]["partial_json"] for n, d in events if n == "content_block_delta")
        found = json.loads(text)
        assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    else:
        [block] = reply.json()["content"]
        assert (block["type"], block["name"], reply.json()["stop_reason"]) == ("tool_use", "add", "tool_use")
        found = block["input"]
    assert 0 <= found["n"] <= 9
    count = wide.post("/v1/messages/count_tokens", body).json()["input_tokens"]
    assert count > 50


def test_gemini_calls_tools(wide):
    capitals = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "minimum": 0, "maximum": 9}}}
    body = {
        "systemInstruction": {"parts": [{"text": "You add."}]},
        "contents": [{"role": "user", "parts": [{"text": TEXT}]}],
        "tools": [{"functionDeclarations": [{"name": "add", "parameters": capitals | {"required": ["n"]}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["add"]}},
        "generationConfig": {"temperature": 1.0, "seed": 1, "maxOutputTokens": 300},
    }
    parts = wide.post("/v1beta/models/any:generateContent", body).json()["candidates"][0]["content"]["parts"]
    assert parts[0]["functionCall"]["name"] == "add" and 0 <= parts[0]["functionCall"]["args"]["n"] <= 9
    count = wide.post("/v1beta/models/any:countTokens", {"contents": body["contents"]}).json()
    assert count["totalTokens"] > 10


def test_structured_output_of_every_dialect(wide):
    schema = PARAMETERS | {"additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}}
    reply = wide.post("/v1/responses", {"input": TEXT, "text": form, "temperature": 1.0, "seed": 2}).json()
    assert 0 <= json.loads(reply["output"][0]["content"][0]["text"])["n"] <= 9
    config = {"responseMimeType": "application/json", "responseJsonSchema": schema, "temperature": 1.0}
    body = {"contents": [{"parts": [{"text": TEXT}]}], "generationConfig": config}
    reply = wide.post("/v1beta/models/any:generateContent", body).json()
    assert 0 <= json.loads(reply["candidates"][0]["content"]["parts"][0]["text"])["n"] <= 9


@pytest.mark.parametrize(
    ("path", "body", "find"),
    [
        ("/v1/responses", {"input": 5}, lambda d: d["error"]["type"] == "invalid_request_error"),
        (
            "/v1/responses",
            {"input": "a", "previous_response_id": "r"},
            lambda d: "stored" in d["error"]["message"],
        ),
        ("/v1/messages", {"messages": 5}, lambda d: d["error"]["type"] == "invalid_request_error"),
        (
            "/v1/messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}
                ]
            },
            lambda d: d["type"] == "error" and "text only" in d["error"]["message"],
        ),
        (
            "/v1beta/models/m:generateContent",
            {"contents": 5},
            lambda d: d["error"]["status"] == "INVALID_ARGUMENT",
        ),
        (
            "/v1beta/models/m:generateContent",
            {"contents": [{"parts": [{"inlineData": {}}]}]},
            lambda d: "text only" in d["error"]["message"],
        ),
    ],
)
def test_refusals_speak_the_dialect(wide, path, body, find):
    reply = wide.post(path, body)
    assert reply.status_code == 400 and find(reply.json()), reply.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_embeddings_are_refused_clearly(wide, path):
    reply = wide.post(path, {"input": "a", "model": "m"})
    assert reply.status_code == 501 and "no embeddings" in reply.text


def test_small_routes(wide, tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    prompt = wide.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert prompt.endswith("<|assistant|>\n") and "hi" in prompt
    counted = wide.post("/tokenize", {"messages": messages}).json()
    assert tokenizer.decode(counted["tokens"]) == prompt and counted["count"] == len(counted["tokens"])
    assert wide.post("/tokenize", {"prompt": "def f"}).json()["count"] == len(tokenizer.encode("def f"))
    assert wide.http.get("/slots").json()[0]["is_processing"] is False
    assert wide.http.get("/lora-adapters").json() == []
    assert wide.http.get("/version").json()["version"]


class TestOpenAIResponses:
    """OpenAI's own client parses every event and answer."""

    @pytest.fixture
    def client(self, wide):
        with openai.OpenAI(base_url=f"{wide.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
            yield client

    def test_creates(self, client, wide):
        reply = client.responses.create(model="x", input=TEXT, max_output_tokens=30, temperature=0)
        assert reply.output_text == openai_chat(wide)["content"]
        assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens

    def test_streams(self, client, wide):
        with client.responses.stream(model="x", input=TEXT, max_output_tokens=30, temperature=0) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == openai_chat(wide)["content"]
