"""Every dialect says the same: streamed or whole, with every option, text equals the engine's own."""

import json
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starcoder.layouts import FAMILIES
from starcoder.request import Completion, CompletionRequest, SamplingParams, Usage
from starcoder.server import chat, llamacpp, ollama, openai, tabby, tgi, transport
from starcoder.server.codec import ServerInfo

# Prompt and parameters in the words of each dialect, and how its whole and its streamed answers read.
DIALECTS = {
    "openai": {
        "path": "/v1/completions",
        "body": lambda r, p: {"prompt": r, "max_tokens": p.max_tokens, **common(p)},
        "whole": lambda d: d["choices"][0]["text"],
        "part": lambda d: "".join(c["text"] for c in d["choices"]),
    },
    "fim": {
        "path": "/v1/fim/completions",
        "body": lambda r, p: {"prompt": r, "max_tokens": p.max_tokens, **common(p)},
        "whole": lambda d: d["choices"][0]["message"]["content"],
        "part": lambda d: "".join(c["delta"].get("content", "") for c in d["choices"]),
    },
    "tgi": {
        "path": "/generate",
        "stream": "/generate_stream",
        "body": lambda r, p: {"inputs": r, "parameters": {"max_new_tokens": p.max_tokens, **common(p)}},
        "whole": lambda d: d["generated_text"],
        "part": lambda d: "" if d["token"]["special"] else d["token"]["text"],
    },
    "tgi-compat": {
        "path": "/",
        "body": lambda r, p: {"inputs": r, "parameters": {"max_new_tokens": p.max_tokens, **common(p)}},
        "whole": lambda d: d[0]["generated_text"],
        "part": lambda d: "" if d["token"]["special"] else d["token"]["text"],
    },
    "llamacpp": {
        "path": "/completion",
        "body": lambda r, p: {"prompt": r, "n_predict": p.max_tokens, **common(p)},
        "whole": lambda d: d["content"],
        "part": lambda d: d["content"],
    },
    "ollama": {
        "path": "/api/generate",
        "body": lambda r, p: {"prompt": r, "options": {"num_predict": p.max_tokens, **common(p)}},
        "whole": lambda d: d["response"],
        "part": lambda d: d["response"],
    },
}


def common(params):
    return {"temperature": params.temperature, "seed": params.seed, "stop": list(params.stop)}


def ask_whole(running, dialect, prompt, params):
    body = dialect["body"](prompt, params) | {"stream": False}
    reply = running.post(dialect["path"], body)
    assert reply.status_code == 200, reply.text
    return dialect["whole"](reply.json())


def ask_streamed(running, dialect, prompt, params):
    """The parts, each event decoded by itself: half a character would fail."""
    body = dialect["body"](prompt, params) | {"stream": True}
    with running.http.stream("POST", dialect.get("stream", dialect["path"]), json=body) as reply:
        data = reply.read()
    separator = b"\n" if dialect["path"].startswith("/api") else b"\n\n"
    events = [piece.decode("utf-8") for piece in data.split(separator) if piece]
    texts = [event.removeprefix("data:").strip() for event in events]
    return [dialect["part"](json.loads(text)) for text in texts if text != "[DONE]"]


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip),
    temperature=st.sampled_from([0.0, 1.5]),
    max_tokens=st.integers(1, 24),
    stop=st.lists(st.text(st.sampled_from("e\nπ a"), min_size=1, max_size=2), max_size=2),
)
def test_streamed_and_whole_equal_the_engine(idle, oracle, name, prompt, temperature, max_tokens, stop):
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=7, stop=tuple(stop))
    prompt = prompt.replace("<", "[")  # no sentinel, no marker
    expected = oracle.text(CompletionRequest(prefix=prompt, sampling=params))
    dialect = DIALECTS[name]
    assert ask_whole(idle, dialect, prompt, params) == expected
    assert "".join(ask_streamed(idle, dialect, prompt, params)) == expected


NULLED = {
    "/v1/completions": {"prompt": "def f", "max_tokens": 2},
    "/v1/fim/completions": {"prompt": "def f", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/generate": {"inputs": "def f", "parameters": {"max_new_tokens": 2}},
    "/infill": {"input_prefix": "def f", "n_predict": 2},
    "/completion": {"prompt": "def f", "n_predict": 2},
    "/api/generate": {"prompt": "def f", "options": {"num_predict": 2}, "stream": False},
    "/api/chat": {
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_predict": 2},
        "stream": False,
    },
}


@pytest.mark.parametrize("path", NULLED)
def test_null_is_absent_for_every_parameter(idle, path):
    schema = idle.http.get("/openapi.json").json()
    route = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    models = schema["components"]["schemas"]

    def nulls(name):
        return dict.fromkeys(models[name]["properties"])

    body = nulls(route["$ref"].rpartition("/")[2]) | NULLED[path]
    if "parameters" in body:
        body["parameters"] = nulls("Parameters") | body["parameters"]
    if "options" in body:
        body["options"] = nulls("Options") | body["options"]
    reply = idle.post(path, body)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", "nonsense", 400),
        ("/v1/completions", "[1]", 400),
        ("/v1/completions", '{"prompt": "a", "max_tokens": NaN}', 400),
        ("/v1/completions", '{"prompt": "a", "temperature": 1e999}', 400),
        ("/v1/completions", '{"prompt": "\\ud800"}', 400),
        ("/v1/completions", '{"prompt": ""}', 400),
        ("/v1/completions", '{"prompt": [[]]}', 400),
        ("/v1/completions", '{"prompt": [-1]}', 400),
        ("/v1/completions", '{"prompt": "a", "n": 0}', 400),
        ("/v1/completions", '{"prompt": "a", "n": 100000}', 400),
        ("/v1/completions", '{"prompt": "a", "stop": [1]}', 400),
        ("/v1/completions", '{"prompt": "a", "echo": true, "logprobs": 1}', 400),
        ("/v1/completions", '{"prompt": "a", "n": 2, "best_of": 3}', 400),
        ("/v1/completions", "[" * 100000, 400),
        ("/v1/completions", b"\xff\xfe\x00", 400),
        ("/v1/chat/completions", '{"messages": []}', 400),
        ("/generate", '{"inputs": ""}', 422),
        ("/generate", '{"parameters": {}}', 422),
        ("/generate", '{"inputs": "a", "parameters": {"top_p": 7}}', 422),
        ("/generate", "nonsense", 400),
        ("/infill", '{"input_prefix": 5}', 400),
        ("/completion", '{"prompt": [1, "a", 99999]}', 400),
        ("/detokenize", '{"tokens": ["a"]}', 400),
        ("/detokenize", '{"tokens": [9223372036854775808]}', 400),
        ("/tokenize", '{"content": [1]}', 400),
        ("/api/generate", '{"prompt": 5}', 400),
        ("/v1/events", '{"type": "other"}', 400),
        ("/nowhere", "{}", 404),
    ],
)
def test_mistakes_are_told_in_the_dialect(idle, path, body, status):
    reply = idle.http.post(path, content=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message and "Traceback" not in message


def test_a_method_that_is_not_there_is_405(idle):
    assert idle.http.get("/v1/completions").status_code == 405


@pytest.mark.parametrize("max_tokens", [500, 10_000, 2**80])
def test_more_tokens_than_fit_are_lowered_not_refused(idle, max_tokens):
    reply = idle.post("/v1/completions", {"prompt": "x = 1\n" * 200, "max_tokens": max_tokens}).json()
    usage = reply["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] <= 512
    assert usage["prompt_tokens"] > 200


def test_to_the_end_of_the_context(idle):
    body = {"prompt": "def f", "n_predict": -1, "ignore_eos": True}
    reply = idle.post("/completion", body).json()
    assert reply["tokens_evaluated"] + reply["tokens_predicted"] == 512


def test_metrics_count_under_both_names(start):
    with start() as running:
        running.post(
            "/v1/completions", {"prompt": "def f", "max_tokens": 5, "ignore_eos": True, "heal": False}
        )
        running.post(
            "/v1/completions", {"prompt": "def f", "max_tokens": 5, "ignore_eos": True, "heal": False}
        )
        running.post("/v1/completions", {"prompt": 1})
        running.wait_until_idle()
        text = running.http.get("/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(numbers["starcoder_requests_total"]) == float(numbers["tgi_request_count"]) == 3
    assert float(numbers["tgi_request_success"]) == 2
    assert float(numbers['tgi_request_failure{err="validation"}']) == 1
    assert float(numbers["starcoder_generated_tokens_sum"]) == 10
    assert float(numbers["tgi_request_generated_tokens_sum"]) == 10
    assert float(numbers["starcoder_time_to_first_token_seconds_count"]) == 2
    num_prompt = float(numbers["starcoder_prompt_tokens_sum"])
    computed = float(numbers["starcoder_prefilled_tokens_total"])
    assert computed + float(numbers["starcoder_cached_tokens_total"]) == num_prompt
    assert float(numbers["starcoder_cached_tokens_total"]) == num_prompt / 2 - 1
    assert float(numbers["tgi_queue_size"]) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_at": "line"},
        {"stop_at": "block"},
        {"max_lines": 2},
        {"min_indent": 4},
        {"postprocess": True},
        {"postprocess": "off"},
        {"postprocess": ["loop", "suffix"]},
        {"deadline_ms": 60_000, "deadline_at": "line"},
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_scopes_and_hygiene_reach_the_engine(idle, oracle, fields, is_stream):
    rules = {True: ("auto",), "off": None}
    named = {name: value for name, value in fields.items() if name != "postprocess"}
    wanted = fields.get("postprocess")
    request = CompletionRequest(
        prefix="def f():\n    ",
        suffix="\n",
        layout="psm",
        sampling=SamplingParams(max_tokens=60, temperature=1.2, seed=3, **named),
        postprocess=tuple(wanted) if isinstance(wanted, list) else rules.get(wanted),
    )
    sampling = {"max_tokens": 60, "temperature": 1.2, "seed": 3, "layout": "psm", "stream": is_stream}
    body = {"prompt": request.prefix, "suffix": request.suffix} | sampling | fields
    reply = idle.post("/v1/completions", body)
    if is_stream:
        events = [line[6:] for line in reply.text.split("\n") if line.startswith("data: {")]
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    else:
        text = reply.json()["choices"][0]["text"]
    assert text == oracle.text(request)


USAGE = Usage(prompt_tokens=7, cached_tokens=2, queue_ms=1.0, prefill_ms=20.0, decode_ms=300.0)
SAMPLE = Completion(text="ab", tokens=(1, 2, 3), finish_reason="length", usage=USAGE)


def test_ollama_counts_nanoseconds(tokenizer):
    info = ServerInfo(model="m", tokenizer=tokenizer, context_length=512)
    answer = ollama.OllamaExchange([CompletionRequest(prefix="a")], False, info).whole([[SAMPLE]])
    assert {name: value for name, value in answer.items() if name.endswith(("duration", "count"))} == {
        "total_duration": 321_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 7,
        "prompt_eval_duration": 20_000_000,
        "eval_count": 3,
        "eval_duration": 300_000_000,
    }


def test_llamacpp_counts_milliseconds_and_tokens_a_second():
    timings = llamacpp.timings(USAGE, 3)
    assert timings == {
        "cache_n": 2,
        "prompt_n": 5,
        "prompt_ms": 20.0,
        "prompt_per_token_ms": 4.0,
        "prompt_per_second": 250.0,
        "predicted_n": 3,
        "predicted_ms": 300.0,
        "predicted_per_token_ms": 100.0,
        "predicted_per_second": 10.0,
    }
    named = openai.timings([USAGE])
    assert (named["queue_ms"], named["prompt_ms"], named["predicted_ms"]) == (1.0, 20.0, 300.0)


def test_headers_count_milliseconds_as_tgi_does():
    assert transport.cost_headers([[SAMPLE]]) == {
        "x-prompt-tokens": "7",
        "x-cached-tokens": "2",
        "x-generated-tokens": "3",
        "x-queue-time": "1",
        "x-inference-time": "320",
        "x-total-time": "321",
        "x-time-per-token": "107",
    }


def test_every_sampling_field_exists_once_and_reaches_every_dialect():
    """No dialect declares a field of `SamplingParams` again, and all accept each under its own name."""
    names = {field.name for field in fields(SamplingParams)} - {"grammar", "logprobs"}
    bodies = [openai.CompletionBody, chat.ChatBody, tgi.Parameters, llamacpp.InfillBody, ollama.Options]
    for body in [*bodies, tabby.TabbyCompletionBody]:
        assert names <= body.model_fields.keys()
        assert names.isdisjoint(vars(body).get("__annotations__", {})), body


def test_a_malformed_prompt_is_mended_and_a_trusted_one_is_not(start):
    wrong = {"prompt": "<file_sep>p.py\n<fim_prefix>a = <fim_suffix>\nb\n<fim_middle>", "max_tokens": 2}
    wrong["layout"] = "psm"
    with start() as running:
        mended = running.post("/v1/fim/render", wrong).json()
    with start(trust_prompts=True) as running:
        trusted = running.post("/v1/fim/render", wrong).json()
    assert mended["text"] == "<file_sep><fim_prefix>p.py\na = <fim_suffix>\nb\n<fim_middle>"
    assert trusted["text"] == wrong["prompt"]


@pytest.mark.parametrize("name", ["qwen2.5-coder", "deepseek-coder", "seed-coder", "codellama", "codestral"])
def test_a_prompt_in_another_familys_sentinels_is_rebuilt_for_the_model(start, name):
    row = FAMILIES[name]
    if row.psm is not None:
        text = f"{row.pre}a = {row.suf}\nb\n{row.mid}"
    else:
        text = f"{row.suf}\nb\n{row.pre}a = {row.mid or ''}"
    with start() as running:
        rebuilt = running.post("/v1/fim/render", {"prompt": text, "max_tokens": 2, "layout": "psm"}).json()
    assert rebuilt["text"].startswith("<fim_prefix>a =")
    assert rebuilt["text"].endswith("<fim_suffix>\nb\n<fim_middle>")


def test_ends_and_biases_are_read_in_every_form(idle):
    """vLLM's names, OpenAI's object and llama.cpp's pairs; `heal` is a switch."""
    free = idle.post("/v1/completions", {"prompt": "def f", "max_tokens": 3, "ignore_eos": True}).json()
    for bias in ({"40": 100}, [[40, 100], [41, False]]):
        body = {"prompt": "def f", "max_tokens": 3, "ignore_eos": True, "heal": False, "logit_bias": bias}
        biased = idle.post("/v1/completions", body).json()["choices"][0]["text"]
        assert len(set(biased)) == 1 and biased != free["choices"][0]["text"]
    body = {"prompt": "def f", "max_tokens": 9, "stop": [biased[:2]], "logit_bias": bias, "heal": False}
    kept = idle.post("/v1/completions", body | {"include_stop_str_in_output": True}).json()
    assert kept["choices"][0]["text"] == biased[:2]
    ended = idle.post("/v1/completions", body | {"stop": [], "stop_token_ids": [40]}).json()
    assert ended["choices"][0]["text"] == ""
    assert idle.post("/v1/completions", body | {"logit_bias": {"x": 1}}).status_code == 400
