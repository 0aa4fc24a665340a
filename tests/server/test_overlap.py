"""Attribution over HTTP: llm-vscode's call, and the field of completions, on a real server."""

import json

import pytest

from starcoder.prepare.attribution import Document, Index, build
from starcoder.request import CompletionRequest, SamplingParams

SOURCE = "def weighted(values):\n    return sum(value.weight * value.amount for value in values)\n"
PROMPT = "def weighted("


@pytest.fixture(scope="module")
def completion(oracle) -> str:
    request = CompletionRequest(prefix=PROMPT, sampling=SamplingParams(max_tokens=40, ignore_eos=True))
    return oracle.text(request)


@pytest.fixture(scope="module")
def known(start, tmp_path_factory, completion):
    """A server whose index holds what its model is going to say."""
    folder = tmp_path_factory.mktemp("attribution") / "index"
    documents = [
        Document(path="w.py", text=SOURCE, repository="team/lib", revision="abc", license="MIT"),
        Document(path="said.py", text=f"# 1\n{PROMPT}{completion}", license="GPL-3.0-only"),
    ]
    build(documents, folder)
    with start(attribution=Index(folder)) as running:
        yield running


def test_llm_vscode_is_answered(known):
    """It posts the text around the cursor and reads nothing but `spans`, in UTF-16 units."""
    before = "# \U0001f600 smile\nimport os\n\n"
    reply = known.post("/overlap", {"document": before + SOURCE + "unheard of"})
    assert reply.status_code == 200
    start = len(before) + 1  # the smile is two units
    assert reply.json()["spans"] == [[start, start + len(SOURCE)]]
    source = {"path": "w.py", "repository": "team/lib", "revision": "abc", "license": "MIT", "line": 1}
    assert reply.json()["sources"] == [[source]]
    assert known.post("/overlap", {"document": "nothing of this is known"}).json()["spans"] == []
    assert known.post("/overlap", {"text": "x"}).status_code == 400
    assert known.post("/overlap", {"document": "x " * 50_001}).status_code == 400


def body(**fields):
    return {"prompt": PROMPT, "max_tokens": 40, "ignore_eos": True, "attribution": True, **fields}


def test_completions_tell_their_spans(known, completion):
    answer = known.post("/v1/completions", body()).json()
    assert answer["choices"][0]["text"] == completion
    spans = answer["attribution"][0]
    assert spans, "the whole completion stands in said.py"
    assert {source["path"] for span in spans for source in span["sources"]} == {"said.py"}
    assert max(span["end"] for span in spans) == len(completion)
    assert spans[0]["sources"][0]["license"] == "GPL-3.0-only"
    assert spans[0]["sources"][0]["line"] >= 2
    assert "attribution" not in known.post("/v1/completions", body(attribution=False)).json()


def test_streams_tell_the_same_before_they_end(known):
    whole = known.post("/v1/completions", body()).json()["attribution"]
    events = known.events("/v1/completions", body(stream=True))
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert (last["attribution"], last["choices"]) == (whole, [])


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 40, "attribution": True}}),
        ("/infill", {"input_prefix": PROMPT, "input_suffix": "", "n_predict": 8, "attribution": True}),
        ("/api/generate", {"model": "m", "prompt": PROMPT, "stream": False, "attribution": True}),
    ],
)
def test_every_dialect_takes_the_field(known, path, request_body):
    reply = known.post(path, request_body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    answer = answer[0] if isinstance(answer, list) else answer
    assert isinstance(answer["attribution"], list)


def test_json_lines_refuse_it(known):
    reply = known.post("/api/generate", {"model": "m", "prompt": PROMPT, "attribution": True})
    assert reply.status_code == 400
    assert "attribution" in reply.text


def test_a_field_that_is_no_switch_is_refused(known):
    assert known.post("/v1/completions", body(attribution="perhaps")).status_code == 400


def test_without_an_index_both_say_what_is_missing(start):
    with start() as running:
        for path, request_body in (("/overlap", {"document": "x"}), ("/v1/completions", body())):
            reply = running.post(path, request_body)
            assert reply.status_code == 400
            assert "--attribution" in reply.text
