"""The client asks servers of OpenAI's completions, busy ones again; what cannot be is told as a mistake."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from starcoder.errors import CapacityError, ConfigError, RequestError
from starcoder.evaluate.client import Endpoint
from starcoder.request import CompletionRequest, SamplingParams, collect


class Handler(BaseHTTPRequestHandler):
    """Answers with what the test put into `server.answers`; remembers bodies."""

    def do_GET(self):
        self.reply(200, {"data": [{"id": "some-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((body, self.headers.get("Authorization")))
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, None)
        self.reply(status, answer if answer is not None else completion(body))

    def reply(self, status, answer):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def completion(body):
    choices = [
        {"text": f"{body['prompt']}/{number}", "finish_reason": "length"} for number in range(body["n"])
    ]
    return {"choices": choices, "usage": {"prompt_tokens": 3}}


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.bodies = [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def endpoint(server, **options):
    return Endpoint(url=f"http://127.0.0.1:{server.server_port}", **options)


def test_every_request_gets_its_own_samples(server):
    requests = [CompletionRequest(prefix=f"p{at}", sampling=SamplingParams(n=2)) for at in range(20)]
    done = collect(endpoint(server, concurrency=4).generate(requests))
    assert {at: [one.text for one in some] for at, some in done.items()} == {
        str(at): [f"p{at}/0", f"p{at}/1"] for at in range(20)
    }


def test_the_body_says_all_that_matters(server):
    sampling = SamplingParams(stop=("x",), max_lines=1, seed=2**62, temperature=0.5, top_p=0.9, max_tokens=7)
    request = CompletionRequest(prefix="a", suffix="b", sampling=sampling)
    list(endpoint(server, api_key="key").named().generate([request]))
    [(body, authorization)] = server.bodies
    assert authorization == "Bearer key"
    assert body == {
        "model": "some-model",
        "prompt": "a",
        "suffix": "b",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "stop": ["\n", "x"],
        "seed": 2**62 % 2**31,
    }


def test_a_busy_server_is_asked_again(server):
    server.answers = [(503, {}), (429, {}), (200, None)]
    done = collect(endpoint(server, num_retries=2).generate([CompletionRequest(prefix="a")]))
    assert [one.text for one in done["0"]] == ["a/0"]
    server.answers = [(503, {})] * 2
    with pytest.raises(CapacityError, match="stays busy"):
        list(endpoint(server, num_retries=1).generate([CompletionRequest(prefix="a")]))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {"error": "no"}), RequestError),
        ((200, b"<html>"), ConfigError),
        ((200, {"choices": []}), ConfigError),
        ((200, {"choices": [{}]}), ConfigError),
    ],
)
def test_what_is_no_completion_is_refused(server, answer, error):
    server.answers = [answer]
    with pytest.raises(error):
        list(endpoint(server).generate([CompletionRequest(prefix="a")]))


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="cannot reach"):
        list(Endpoint(url="http://127.0.0.1:9", num_retries=0).generate([CompletionRequest(prefix="a")]))


def test_answers_are_cut_here_and_few_stops_are_sent(server):
    stops = tuple(f"\n{word}" for word in ("class", "def", "#", "@", "print", "if"))
    server.answers = [(200, {"choices": [{"text": "    return 1\nprint(2)\n", "finish_reason": "length"}]})]
    request = CompletionRequest(prefix="p", sampling=SamplingParams(stop=stops))
    [[answer]] = collect(endpoint(server, model="m").generate([request])).values()
    assert (answer.text, answer.finish_reason) == ("    return 1", "stop")
    assert len(server.bodies[0][0]["stop"]) == 4
    server.answers = [(200, {"choices": [{"text": "a\nb\nc", "finish_reason": "length"}]})]
    lines = CompletionRequest(prefix="p", sampling=SamplingParams(max_lines=2))
    cutting = endpoint(server, model="m", cut=lambda request, text: text.partition("\nc")[0])
    [[answer]] = collect(cutting.generate([lines])).values()
    assert answer.text == "a\nb"
