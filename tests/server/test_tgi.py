"""With `tgi-strict` the limits, messages and texts are TGI's own; without, its clients get more."""

import json

import pytest

from starcoder.request import CompletionRequest, SamplingParams

STRICT = {
    "`best_of` must be > 0 and <= 2. Given: 3": {"best_of": 3},
    "you must use sampling when `best_of` is > 1": {"best_of": 2},
    "`seed` must not be set when `best_of` > 1": {"best_of": 2, "do_sample": True, "seed": 1},
    "`temperature` must be strictly positive": {"temperature": 0},
    "`repetition_penalty` must be strictly positive": {"repetition_penalty": 0},
    "`frequency_penalty` must be >= -2.0 and <= 2.0": {"frequency_penalty": 3},
    "`top_p` must be > 0.0 and < 1.0": {"top_p": 1.0},
    "`typical_p` must be > 0.0 and < 1.0": {"typical_p": 1.0},
    "`top_k` must be strictly positive": {"top_k": 0},
    "`max_new_tokens` must be strictly positive": {"max_new_tokens": 0},
    "`stop` supports up to 4 stop sequences. Given: 5": {"stop": ["a", "b", "c", "d", "e"]},
    "`top_n_tokens` must be >= 0 and <= 5. Given: 6": {"top_n_tokens": 6},
    "`truncate` must be strictly positive and less than 512. Given: 600": {"truncate": 600},
    "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 5 `inputs` tokens and 510 `max_new_tokens`": {
        "max_new_tokens": 510
    },
}


@pytest.fixture(scope="module")
def strict(start):
    with start(compat="tgi-strict") as running:
        yield running


@pytest.mark.parametrize("message", STRICT)
def test_messages_are_its_own(strict, message, tokenizer):
    text = tokenizer.decode([40, 41, 42, 43, 44])
    reply = strict.post("/generate", {"inputs": text, "parameters": STRICT[message]})
    assert reply.status_code == 422
    assert reply.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}


def test_empty_inputs(strict):
    reply = strict.post("/generate", {"inputs": "", "parameters": {}})
    assert reply.json()["error"] == "Input validation error: `inputs` cannot be empty"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
def test_what_a_stream_cannot_do(strict, parameters, message):
    reply = strict.post("/generate_stream", {"inputs": "a", "parameters": parameters})
    assert message in reply.json()["error"]


def test_the_stop_string_stays_only_when_strict(strict, idle, oracle):
    whole = oracle.text(CompletionRequest(prefix="def f", heal=False, sampling=SamplingParams(max_tokens=12)))
    stop = whole[3:5]
    cut = whole[: whole.index(stop)]
    body = {"inputs": "def f", "parameters": {"max_new_tokens": 12, "stop": [stop], "details": True}}
    body["parameters"]["heal"] = False  # which strict does in any case
    reply = strict.post("/generate", body).json()
    assert reply["generated_text"] == cut + stop
    assert reply["details"]["finish_reason"] == "stop_sequence"
    assert idle.post("/generate", body).json()["generated_text"] == cut
    events = strict.events("/generate_stream", body, prefix="data:")
    assert json.loads(events[-1])["generated_text"] == cut + stop


def test_the_compat_route_returns_the_full_text_only_when_strict(strict, idle):
    body = {"inputs": "def f", "parameters": {"max_new_tokens": 4, "heal": False}}
    [full], [new] = strict.post("/", body).json(), idle.post("/", body).json()
    assert full["generated_text"] == "def f" + new["generated_text"]


def test_events_have_no_space_and_count_from_one(idle):
    body = {"inputs": "def f", "parameters": {"max_new_tokens": 6, "details": True, "top_n_tokens": 2}}
    events = [json.loads(event) for event in idle.events("/generate_stream", body, prefix="data:")]
    assert "data: " not in idle.post("/generate_stream", body).text
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["generated_text"] is None for event in events] == [True] * (len(events) - 1) + [False]
    assert len(events[0]["top_tokens"]) == 2
    assert events[-1]["details"]["input_length"] > 0
    assert {"id", "text", "logprob", "special"} == events[0]["token"].keys()


def test_the_seed_it_drew_is_told_and_repeats(idle):
    body = {"inputs": "def f", "parameters": {"max_new_tokens": 8, "do_sample": True, "details": True}}
    first = idle.post("/generate", body).json()
    body["parameters"]["seed"] = first["details"]["seed"]
    assert idle.post("/generate", body).json()["generated_text"] == first["generated_text"]


def test_best_of_gives_the_others_as_well(idle):
    body = {"inputs": "def f", "parameters": {"max_new_tokens": 4, "best_of": 3, "details": True}}
    details = idle.post("/generate", body).json()["details"]
    others = details["best_of_sequences"]

    def score(sequence):
        return sum(token["logprob"] for token in sequence["tokens"])

    assert len(others) == 2
    assert all(score(details) >= score(other) for other in others)


def test_truncated_prompts_keep_their_layout(idle, oracle):
    inputs = "<fim_prefix>" + "x = 1\n" * 40 + "y = <fim_suffix>\nz\n<fim_middle>"
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 4, "truncate": 30}}
    assert idle.post("/generate", body).status_code == 200


def test_it_tells_about_itself(idle):
    info = idle.http.get("/info").json()
    assert info["model_id"] == "tiny/starcoder2" and info["max_total_tokens"] == 512
    reply = idle.post("/generate", {"inputs": "def f", "parameters": {"max_new_tokens": 3}})
    assert reply.headers["x-generated-tokens"] == "3"
    assert int(reply.headers["x-prompt-tokens"]) > 0


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "def f", "parameters": {"max_new_tokens": 2}},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
        {"prompt": "def f", "max_tokens": 2},
    ],
)
def test_invocations_take_any_contract(idle, body):
    assert idle.post("/invocations", body).status_code == 200
