"""The planner's bytes are the real ones, and what it suggests fits."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from starcoder import checkpoint, plan
from starcoder.config import ModelConfig
from starcoder.engine.cache import bytes_per_token
from starcoder.engine.settings import EngineSettings
from starcoder.model import Transformer
from starcoder.plan import KNOWN
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, expect, quantize
from starcoder.tokenizer import Tokenizer
from tests.tiny import VARIANTS, make_model, make_tokenizer

GB = 10**9
STARCODER = KNOWN["bigcode/starcoder"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def packed_bytes(config: ModelConfig, scheme: str) -> tuple[int, int]:
    """Bytes of all weights, and of those that a decoded token reads, from the layers themselves."""
    with torch.device("meta"):
        model = Transformer(config)
    expect(model, scheme)
    floats = sum(parameter.nbytes for parameter in model.parameters())
    sizes = {
        id(module.data): (module.packed.size_bytes, isinstance(module, QuantizedLinear))
        for module in model.modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }
    linears = floats + sum(size for size, is_linear in sizes.values() if is_linear)
    return floats + sum(size for size, _ in sizes.values()), linears


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("config", [*VARIANTS, "bigcode/tiny_starcoder_py", "bigcode/starcoder2-15b"])
def test_packed_bytes_are_those_of_the_layers(config, scheme):
    shape = KNOWN[config] if config in KNOWN else ModelConfig.from_hf(VARIANTS[config])
    expected = packed_bytes(shape, scheme)
    assert (plan.weight_bytes(shape, scheme), plan.read_bytes(shape, scheme)) == expected


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_packed_bytes_are_those_that_quantizing_reports(scheme):
    model = make_model("bigcode-odd-vocabulary")
    config = model.config
    assert quantize(model, scheme).size_bytes == plan.weight_bytes(config, scheme)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float_bytes_are_those_of_the_network(variant):
    model = make_model(variant)
    assert plan.weight_bytes(model.config, "float32") == sum(p.nbytes for p in model.parameters())
    assert plan.weight_bytes(model.config, "bfloat16") * 2 == plan.weight_bytes(model.config, "float32")
    tables = model.positions.weight.nbytes if model.positions is not None else 0
    tables += 0 if model.config.tied_embeddings else model.embed.weight.nbytes
    expected = plan.weight_bytes(model.config, "float32") - tables
    assert plan.read_bytes(model.config, "float32") == expected


def test_the_cache_is_what_the_engine_allocates():
    for config in KNOWN.values():
        for weights, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            assert plan.cache_bytes(config, weights, 4096) == 4096 * bytes_per_token(config, dtype)
    assert plan.cache_bytes(STARCODER, "int4", 1) == 16 * bytes_per_token(STARCODER, torch.float32)


def test_the_planner_knows_the_engines_defaults():
    settings = EngineSettings()
    assert settings.block_size == plan._BLOCK_TOKENS
    assert settings.max_step_tokens == plan._STEP_TOKENS


# Source: the models' pages on huggingface.co, and the StarCoder papers' "15.5B".
@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("bigcode/tiny_starcoder_py", 0.164),
        ("bigcode/gpt_bigcode-santacoder", 1.125),
        ("bigcode/starcoderbase-1b", 1.14),
        ("bigcode/starcoderbase-3b", 3.04),
        ("bigcode/starcoderbase-7b", 7.33),
        ("bigcode/starcoder", 15.5),
        ("HuggingFaceH4/starchat-beta", 15.5),
        ("bigcode/starcoder2-3b", 3.03),
        ("bigcode/starcoder2-7b", 7.17),
        ("bigcode/starcoder2-15b", 15.96),
    ],
)
def test_known_models_have_the_published_size(model, billions):
    assert KNOWN[model].num_parameters / 1e9 == pytest.approx(billions, rel=4e-3)


def test_starcoder_in_int8_is_below_what_the_first_readme_printed():
    """The original project: 15,939.61 MB in int8 (bitsandbytes)."""
    assert plan.weight_bytes(STARCODER, "int8") / 1e6 == pytest.approx(15771.63, abs=0.01)
    assert plan.weight_bytes(STARCODER, "int4") / 1e6 == pytest.approx(8281.06, abs=0.01)


def test_a_plan_adds_up_and_a_shorter_context_needs_less():
    whole = plan.plan(STARCODER, "int4")
    short = plan.plan(STARCODER, "int4", context=1024, sequences=2)
    parts = whole.weight_bytes, whole.cache_bytes, whole.scratch_bytes, whole.runtime_bytes
    assert whole.total_bytes == sum(parts)
    assert whole.context == STARCODER.max_positions
    assert short.cache_bytes * 4 == whole.cache_bytes
    assert plan.plan(STARCODER, "int4", context=10**6).context == STARCODER.max_positions


@pytest.mark.parametrize(
    ("memory", "weights", "context"),
    [
        (80 * GB, "float32", 8192),
        (40 * GB, "bfloat16", 8192),
        (24 * GB, "int8", 8192),
        (16 * GB, "int4", 8192),
        (9.3 * GB, "int4", None),
    ],
)
def test_the_suggestion_is_the_most_exact_that_fits(memory, weights, context):
    found = plan.largest_fitting(plan.plan(STARCODER, "float32"), STARCODER, int(memory))
    assert found is not None
    assert found.fits(int(memory))
    assert found.weights == weights
    assert found.context == context or (context is None and 0 < found.context < 8192)


def test_no_suggestion_is_more_exact_than_what_was_asked_for():
    found = plan.largest_fitting(plan.plan(STARCODER, "int4"), STARCODER, 80 * GB)
    assert found is not None
    assert found.weights == "int4"


def test_where_nothing_fits_there_is_no_suggestion():
    assert plan.largest_fitting(plan.plan(STARCODER, "float32"), STARCODER, 8 * GB) is None
    assert plan.longest_context(STARCODER, "int4", 8 * GB) == 0


def test_the_longest_context_fits_and_one_block_more_does_not():
    memory = 10 * GB
    longest = plan.longest_context(STARCODER, "int4", memory, sequences=8)
    assert plan.plan(STARCODER, "int4", context=longest, sequences=8).fits(memory)
    assert not plan.plan(STARCODER, "int4", context=longest + 16, sequences=8).fits(memory)


def test_a_containers_limit_is_the_machines_memory(monkeypatch):
    whole = plan.machine_bytes()
    real = plan.Path.read_text
    limits = {"/sys/fs/cgroup/memory.max": "1000000\n"}
    monkeypatch.setattr(
        plan.Path, "read_text", lambda path, *rest: limits.get(str(path)) or real(path, *rest)
    )
    assert (whole > 10**8, plan.machine_bytes()) == (True, 10**6)


RUN = """
import sys, starcoder
model = starcoder.load(sys.argv[1])
model.complete("a b c d e f g " * 40, max_tokens=32, ignore_eos=True)
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def full_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of StarCoder's size, for its memory counts: pairs of bytes fill it up."""
    make_tokenizer("starcoder", folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    letters = [text for text in vocab if len(text) == 1]
    for left, right in itertools.product(letters, letters):
        if left + right not in vocab and len(vocab) < 49152:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    path.write_text(json.dumps(document))
    return Tokenizer.load(folder)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_a_run_of_164m_parameters_peaks_within_a_tenth_of_its_plan(weights, tmp_path):
    config = KNOWN["bigcode/tiny_starcoder_py"]
    model = Transformer(config)
    model.initialize(torch.Generator().manual_seed(0))
    if weights != "float32":
        quantize(model, weights, method="nearest")
    checkpoint.save(model, tmp_path)
    tokens = len(full_tokenizer(tmp_path).encode("a b c d e f g " * 40)) + 32

    peak = int(subprocess.check_output([sys.executable, "-c", RUN, str(tmp_path)], text=True))

    assert plan.plan(config, weights, context=tokens).total_bytes == pytest.approx(peak, rel=0.1)
