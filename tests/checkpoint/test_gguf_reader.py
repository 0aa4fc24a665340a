"""A GGUF file loads as the checkpoint that it was made from; foreign and broken ones are two lines."""

import json

import numpy as np
import pytest
import torch

from starcoder import checkpoint
from starcoder.cli import main
from starcoder.engine import local
from starcoder.errors import CheckpointError
from tests.tiny import VARIANTS, make_model, make_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")

# Not in GGUF: Starcoder2's window, the exact GELU, Llama 3's own scaling; and a gate of anything but silu.
LOST = {"sliding_window": None, "activation": None, "family": None}
EXPORTED = [name for name in VARIANTS if name not in ("llama-llama3-scaling", "mistral")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def make_file(variant, folder, type="f16"):
    checkpoint.save(make_model(variant), folder)
    make_tokenizer("starcoder2", folder)
    output = folder.with_suffix(".gguf")
    checkpoint.export_gguf(folder, output, type=type)
    return output


@pytest.mark.parametrize("variant", EXPORTED)
def test_what_was_exported_is_read_back(variant, tmp_path):
    """Every tensor, rounded once; every number that the format has."""
    expected = make_model(variant)

    found = checkpoint.load(make_file(variant, tmp_path / "model"), dtype=torch.float32)

    for name in found.config.__dataclass_fields__.keys() - LOST.keys():
        ours, theirs = getattr(found.config, name), getattr(expected.config, name)
        if variant == "starcoder2-no-bias" and name.endswith("_bias"):
            continue  # llama.cpp wants them, as zeros
        assert ours == theirs, name
    for name, parameter in expected.named_parameters():
        rounded = (
            parameter.half().float() if parameter.dim() > 1 and name != "positions.weight" else parameter
        )
        torch.testing.assert_close(found.get_parameter(name), rounded, atol=0, rtol=0)


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_quantized_matrices_are_what_the_package_dequantizes(type, tmp_path):
    path = make_file("llama", tmp_path / "model", type)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    model = checkpoint.load(path, dtype=torch.float32)

    for layer in range(3):
        down = tensors[f"blk.{layer}.ffn_down.weight"]
        expected = gguf.quants.dequantize(down.data, down.tensor_type)
        assert np.array_equal(
            model.get_parameter(f"blocks.{layer}.feed_forward.down.weight").numpy(force=True), expected
        )
    value = tensors["blk.1.attn_v.weight"]
    rows = model.get_parameter("blocks.1.attention.qkv.weight")[-32:]
    assert np.array_equal(rows.numpy(force=True), gguf.quants.dequantize(value.data, value.tensor_type))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_the_package_reads_every_type_that_the_docs_name(kind):
    type = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[type]
    data = np.random.default_rng(0).integers(0, 60, (4, 512 // block * size), dtype=np.uint8)
    found = gguf.quants.dequantize(data, type)
    assert found.shape == (4, 512) and np.isfinite(found).all()


def test_text_and_chat_template_go_along(tmp_path):
    folder = tmp_path / "model"
    checkpoint.save(make_model("starcoder2"), folder)
    tokenizer = make_tokenizer("starcoder2", folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    checkpoint.export_gguf(folder, tmp_path / "m.gguf")

    model = local.load(tmp_path / "m.gguf", dtype="float32")

    text = "def add(first, second):\n    return 1234 + second  # naïve 😀"
    assert model.tokenizer.encode(text) == tokenizer.encode(text)
    assert model.tokenizer.special_tokens == tokenizer.special_tokens
    assert model.tokenizer.chat_template == "{{ messages[0]['content'] }}"
    texts = [
        one.complete("def add(", max_tokens=8, temperature=0.0).text for one in (model, local.load(folder))
    ]
    assert texts[0] == texts[1]


def test_a_folder_with_one_file_is_that_model_and_with_two_asks_which(tmp_path):
    path = make_file("bigcode", tmp_path / "model", "q8_0")
    folder = tmp_path / "only"
    folder.mkdir()
    path.rename(folder / "a.gguf")
    assert checkpoint.load(folder).config.family == "gpt_bigcode"
    (folder / "b.gguf").write_bytes((folder / "a.gguf").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds several models: a.gguf, b.gguf"):
        checkpoint.load(folder)


def test_a_quantized_file_is_kept_as_int8_and_becomes_a_checkpoint(tmp_path, caplog, capsys):
    path = make_file("qwen2", tmp_path / "model", "q4_0")
    assert checkpoint.default_scheme(path) == "int8"
    assert "holds Q4_0, Q8_0: kept as int8" in caplog.text
    checkpoint.quantize_folder(path, tmp_path / "int4", "int4")
    assert "gguf_file" not in json.loads((tmp_path / "int4" / "config.json").read_text())
    path.unlink()
    assert checkpoint.load(tmp_path / "int4").config.family == "qwen2"
    assert main(["plan", str(tmp_path / "int4")]) == 0
    assert checkpoint.default_scheme(tmp_path / "model") is None


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "cannot be read as GGUF"),
        (b"GGUF\x03\0\0\0", "cannot be read"),
        (b"x" * 500, "cannot be read as GGUF"),
    ],
    ids=["empty", "cut off", "not GGUF"],
)
def test_a_broken_file_is_named(data, complaint, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("general.architecture", "gemma3", "architecture 'gemma3'"),
        ("tokenizer.ggml.model", "llama", "tokenizer of kind 'llama'"),
        ("tokenizer.ggml.pre", "unheard-of", "cuts text as 'unheard-of'"),
    ],
)
def test_a_foreign_model_is_named(key, value, complaint, tmp_path):
    path = tmp_path / "x.gguf"
    fields = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "starcoder",
    } | {key: value}
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for name, text in fields.items():
        writer.add_string(name, text)
    for name in (
        "attention.head_count",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "context_length",
    ):
        writer.add_uint32(f"llama.{name}", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((4, 2), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match=complaint) as failure:
        checkpoint.load(path)
    assert failure.value.hint
