"""What users of other servers reported, replayed: each case is named by the report, and by what should be."""

import json
import threading

import httpx
import pytest

from starcoder.request import CompletionRequest, SamplingParams

MESSAGES = [{"role": "user", "content": "Go."}]


def test_llamacpp_9865_a_time_limit_ends_at_a_whole_line(start, weights, tokenizer):
    """llama.vim and llama.vscode name `t_max_predict_ms`: on a CPU it is what makes them usable."""
    with start() as running:
        body = {"input_prefix": "def f", "input_suffix": "", "n_predict": 400, "ignore_eos": True}
        limited = running.post("/infill", body | {"t_max_predict_ms": 1}).json()
        assert limited["stop_type"] == "limit" and limited["tokens_predicted"] < 100
        assert running.post("/infill", body | {"t_max_predict_ms": 0}).json()["tokens_predicted"] == 400


def test_a_chat_without_a_limit_goes_to_the_end_of_the_context(idle):
    reply = idle.post("/v1/chat/completions", {"messages": MESSAGES, "ignore_eos": True}).json()
    assert reply["usage"]["total_tokens"] == 512


@pytest.mark.parametrize("name", ["n_predict", "max_tokens", "max_completion_tokens"])
def test_llama_vim_warms_a_chat_up_with_no_tokens(idle, name):
    reply = idle.post("/v1/chat/completions", {"messages": MESSAGES, name: 0}).json()
    assert reply["choices"][0]["message"]["content"] == "" and reply["usage"]["completion_tokens"] <= 1
    reply = idle.post("/v1/chat/completions", {"messages": MESSAGES, name: 3, "ignore_eos": True}).json()
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(("limit", "num_tokens"), [(-1, 500), (0, 0)])
def test_lm_studio_takes_minus_one(idle, limit, num_tokens):
    body = {"prompt": "def f", "max_tokens": limit, "ignore_eos": True}
    reply = idle.post("/v1/completions", body)
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] >= num_tokens


def test_langchain_takes_the_best_of_several(idle):
    body = {"prompt": "a", "max_tokens": 2, "n": 1, "best_of": 3}
    assert len(idle.post("/v1/completions", body).json()["choices"]) == 1


def test_minuet_asks_three_times_at_once_for_three_suggestions(start, weights, tokenizer):
    body = {"prompt": "def add(first,", "max_tokens": 40, "ignore_eos": True}
    with start() as running:
        texts = []

        def ask():
            reply = httpx.post(f"{running.url}/v1/completions", json=body, timeout=30, trust_env=False)
            texts.append(reply.json()["choices"][0]["text"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = running.post("/v1/completions", body).json()["choices"][0]["text"]
        greedy = [running.post("/v1/completions", body).json()["choices"][0]["text"] for _ in range(2)]
    assert alone in texts and len(set(texts)) > 1
    assert greedy == [alone, alone]


def test_an_image_is_refused_by_its_name(idle):
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    reply = idle.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert reply.status_code == 400 and "text only" in reply.text and "image_url" in reply.text


def test_llamacpp_19051_null_is_a_value_of_a_schema(idle):
    schema = {"const": None}
    form = {"type": "json_object", "schema": schema}
    reply = idle.post("/v1/completions", {"prompt": "a", "max_tokens": 20, "response_format": form})
    assert json.loads(reply.json()["choices"][0]["text"]) is None


def test_llamacpp_10914_a_stream_equals_the_whole_with_half_met_stops(idle, oracle):
    whole = oracle.text(CompletionRequest(prefix="def f(", sampling=SamplingParams(max_tokens=30)))
    stops = [whole[3:9] + "x", whole[10:14] + "y"]
    body = {"prompt": "def f(", "max_tokens": 30, "stop": stops}
    events = idle.events("/v1/completions", body | {"stream": True})
    parts = [json.loads(event)["choices"][0]["text"] for event in events if event != "[DONE]"]
    assert "".join(parts) == idle.post("/v1/completions", body).json()["choices"][0]["text"] == whole


def test_continue_2461_many_stops_are_taken(idle):
    body = {"prompt": "a", "max_tokens": 2, "stop": [f"stop {number}" for number in range(25)]}
    assert idle.post("/v1/completions", body).status_code == 200


def test_tgi_1039_a_stop_fires_inside_a_token(idle, oracle, tokenizer):
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=2, ignore_eos=True)
    sample = oracle.samples(CompletionRequest(prefix="def f(", sampling=params))[0]
    long = next(text for text in map(tokenizer.token_text, sample.tokens) if len(text) > 1)
    body = {"prompt": "def f(", "max_tokens": 60, "temperature": 1.0, "seed": 2, "ignore_eos": True}
    body["stop"] = [long[1]]
    text = idle.post("/v1/completions", body).json()["choices"][0]["text"]
    assert text == sample.text[: sample.text.index(long[1])]


def test_ollama_6932_an_empty_suffix_is_no_infill(idle, oracle):
    body = {"prompt": "def f(", "suffix": "", "stream": False, "options": {"num_predict": 8}}
    request = CompletionRequest(prefix="def f(", sampling=SamplingParams(max_tokens=8))
    assert idle.post("/api/generate", body).json()["response"] == oracle.text(request)
