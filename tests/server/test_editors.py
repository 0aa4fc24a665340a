"""The bodies that editors send get the answers that they parse."""

import json

import pytest

from starcoder.request import CompletionRequest, ContextFile, SamplingParams

PREFIX, SUFFIX = "def add(first, second):\n    return ", "\n\n\nprint(add(1, 2))\n"
FIM = f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>"


def infill(max_tokens, **fields):
    return CompletionRequest(
        **{"prefix": PREFIX, "suffix": SUFFIX} | fields, sampling=SamplingParams(max_tokens=max_tokens)
    )


class TestLlmLs:
    """llm-vscode, llm.nvim and llm-intellij: five backends, one raw prompt, options that stay nested."""

    options = {"parameters": {"max_new_tokens": 10, "temperature": 0.0, "top_p": 0.95}}  # noqa: RUF012

    def test_huggingface(self, idle, oracle):
        body = {"inputs": FIM, "parameters": self.options["parameters"] | {"return_full_text": False}}
        reply = idle.post("/models/bigcode/starcoder2-3b", body).json()
        assert reply == [{"generated_text": oracle.text(infill(10))}]

    def test_tgi_is_an_object(self, idle, oracle):
        body = {"inputs": FIM, "parameters": self.options["parameters"] | {"return_full_text": False}}
        assert idle.post("/generate", body).json() == {"generated_text": oracle.text(infill(10))}

    @pytest.mark.parametrize("backend", ["openai", "llamacpp"])
    def test_openai_with_nested_parameters(self, idle, oracle, backend):
        body = self.options | {"prompt": FIM, "model": "bigcode/starcoder2-3b", "stream": False}
        reply = idle.post("/v1/completions", body).json()
        assert [choice["text"] for choice in reply["choices"]] == [oracle.text(infill(10))]

    def test_openai_errors_have_a_detail(self, idle):
        [detail] = idle.post("/v1/completions", {"prompt": [], "model": "m"}).json()["detail"]
        assert {"loc", "msg", "type"} == detail.keys()

    def test_ollama(self, idle, oracle):
        body = {"prompt": FIM, "model": "m", "stream": False, "options": {"num_predict": 10}}
        assert idle.post("/api/generate", body).json()["response"] == oracle.text(infill(10))

    def test_parameters_nested_twice_are_ignored(self, idle):
        body = {"inputs": FIM, "parameters": {"parameters": {"max_new_tokens": "?"}, "max_new_tokens": 3}}
        assert idle.post("/generate", body).status_code == 200


class TestZed:
    def test_every_field_of_its_reply_is_there(self, idle, oracle):
        stops = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"]
        body = {"model": "starcoder2", "prompt": FIM, "max_tokens": 10, "stop": stops}
        reply = idle.post("/v1/completions", body).json()
        assert isinstance(reply["id"], str) and reply["object"] == "text_completion"
        assert isinstance(reply["created"], int) and isinstance(reply["model"], str)
        assert reply["choices"][0]["text"] == oracle.text(infill(10))
        assert all(
            isinstance(reply["usage"][f"{name}_tokens"], int) for name in ("prompt", "completion", "total")
        )


class TestLlamaVim:
    body = {  # noqa: RUF012
        "id_slot": 0,
        "input_prefix": "def add(first, second):\n",
        "input_suffix": SUFFIX,
        "input_extra": [{"filename": "box.py", "text": "class Box:\n    pass\n"}],
        "prompt": "    return ",
        "n_predict": 8,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.99,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 250,
        "response_fields": [
            "content",
            "timings/prompt_n",
            "timings/prompt_ms",
            "timings/predicted_n",
            "truncated",
            "tokens_cached",
        ],
    }

    def test_fields_keep_their_slashes(self, idle, oracle):
        reply = idle.post("/infill", self.body).json()
        extras = (ContextFile(path="box.py", text="class Box:\n    pass\n"),)
        assert reply["content"] == oracle.text(infill(8, extras=extras))
        assert list(reply) == self.body["response_fields"]
        assert reply["truncated"] is False

    def test_nothing_to_predict_warms_the_cache(self, start, oracle):
        with start() as fresh:
            plain = self.body | {"heal": False}  # healing computes the last tokens again
            cold = plain | {"n_predict": 0, "response_fields": [""]}
            assert fresh.post("/infill", cold).json() == {}
            reply = fresh.post("/infill", plain).json()
        assert reply["timings/prompt_n"] == 1
        extras = (ContextFile(path="box.py", text="class Box:\n    pass\n"),)
        assert reply["content"] == oracle.text(infill(8, extras=extras, heal=False))

    def test_an_empty_warm_up_is_no_error(self, idle):
        body = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0}
        assert idle.post("/infill", body).json()["content"] == ""

    def test_several_completions_are_a_list(self, idle):
        reply = idle.post("/infill", self.body | {"n_cmpl": 3, "temperature": 1.0}).json()
        assert len(reply) == 3 and all("content" in one for one in reply)

    def test_streams(self, idle, oracle):
        parts = [
            json.loads(event)
            for event in idle.events("/infill", self.body | {"stream": True, "n_predict": 8})
        ]
        assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
        whole = idle.post("/infill", self.body).json()["content"]
        assert "".join(part["content"] for part in parts) == whole

    def test_reads_health_and_props(self, idle):
        assert idle.http.get("/health").json() == {"status": "ok"}
        assert idle.http.get("/props").json()["default_generation_settings"]["n_ctx"] == 512

    def test_a_model_without_sentinels_says_so(self, start, weights, tmp_path):
        reply = {"code": 501, "type": "server_error"}
        from starcoder.layouts import Sentinels
        from starcoder.server import llamacpp
        from starcoder.server.codec import HTTPError, ServerInfo

        class Plain:
            sentinels = Sentinels(style="starcoder", eos=0, end_ids=frozenset({0}))

        info = ServerInfo(model="m", tokenizer=Plain(), context_length=9)
        with pytest.raises(HTTPError, match="cannot infill") as caught:
            llamacpp.read_infill({"input_prefix": "a"}, info)
        assert llamacpp.error(caught.value)["error"].items() >= reply.items()


class TestContinue:
    def test_streams_completions(self, idle, oracle):
        body = {
            "model": "starcoder2",
            "prompt": FIM,
            "max_tokens": 10,
            "stream": True,
            "stop": ["<|endoftext|>"] * 9,
        }
        *events, done = idle.events("/v1/completions", body)
        assert done == "[DONE]"
        assert "".join(json.loads(e)["choices"][0]["text"] for e in events) == oracle.text(infill(10))

    def test_fim_completions_are_answered_like_a_chat(self, idle, oracle):
        body = {"model": "m", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 10}
        whole = idle.post("/v1/fim/completions", body).json()
        assert whole["choices"][0]["message"]["content"] == oracle.text(infill(10))
        *events, _ = idle.events("/v1/fim/completions", body | {"stream": True})
        text = "".join(json.loads(e)["choices"][0]["delta"]["content"] for e in events)
        assert text == oracle.text(infill(10))


class TestTabby:
    segments = {  # noqa: RUF012
        "prefix": PREFIX,
        "suffix": SUFFIX,
        "filepath": "src/add.py",
        "git_url": "git@github.com:me/sums.git",
        "declarations": [{"filepath": "src/box.py", "body": "class Box: ..."}],
        "relevant_snippets_from_changed_files": [{"filepath": "a.py", "body": "x = 1\n", "score": 1.0}],
        "clipboard": "secret",
    }

    def test_completes_with_its_files(self, idle, oracle):
        body = {"language": "python", "segments": self.segments, "user": "me", "temperature": None}
        reply = idle.post("/v1/completions", body).json()
        request = infill(
            64,
            path="src/add.py",
            repo="me/sums",
            extras=(
                ContextFile(path="a.py", text="x = 1\n"),
                ContextFile(path="src/box.py", text="class Box: ..."),
            ),
        )
        assert reply["choices"] == [{"index": 0, "text": oracle.text(request)}]
        assert reply["id"].startswith("cmpl-")

    def test_checks_health_either_way(self, idle):
        for method in ("GET", "POST"):
            reply = idle.http.request(method, "/v1/health").json()
            assert {
                "model",
                "device",
                "arch",
                "cpu_info",
                "cpu_count",
                "cuda_devices",
                "version",
            } <= reply.keys()

    def test_tells_events(self, idle):
        event = {"type": "select", "completion_id": "cmpl-1", "choice_index": 0, "elapsed": 300}
        assert idle.post("/v1/events", event).status_code == 200
        assert 'starcoder_completions_total{event="select"}' in idle.http.get("/metrics").text

    def test_empty_segments_are_a_clean_error(self, idle):
        assert idle.post("/v1/completions", {"segments": {}}).status_code == 400


def test_browsers_get_a_page_and_others_a_sentence(idle):
    assert idle.http.get("/").text == "Ollama is running"
    page = idle.http.get("/", headers={"accept": "text/html,*/*"}, follow_redirects=True)
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http://www.w3.org", "").replace("HTTP", "")


def test_render_shows_what_would_run(idle, tokenizer, oracle):
    body = {"prompt": FIM, "max_tokens": 10}
    idle.post("/v1/completions", body)
    shown = idle.post("/v1/fim/render", body).json()
    assert shown["text"] == tokenizer.decode(shown["tokens"])
    assert shown["text"].count("<fim_middle>") == 1
    assert shown["cached_tokens"] == shown["prompt_tokens"] - 1
    assert shown["budget"] == 512 - 10


def test_tokenize_speaks_both_dialects(idle, tokenizer):
    text = "π = add(1)\n<fim_prefix>"
    ids = tokenizer.encode_with_special(text)
    assert idle.post("/tokenize", {"content": text}).json() == {"tokens": ids}
    assert idle.post("/detokenize", {"tokens": ids}).json() == {"content": text}
    tokens = idle.post("/tokenize", {"inputs": text}).json()
    assert [token["id"] for token in tokens] == ids
    data = text.encode()
    assert b"".join(data[token["start"] : token["stop"]] for token in tokens) == data
    pieces = idle.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids
