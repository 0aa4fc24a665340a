"""Broken, foreign and hostile folders fail with the file's name and a hint; nothing of them runs."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from starcoder import checkpoint
from starcoder.errors import ConfigError
from tests.checkpoint.spoil import WEIGHTS, as_bin, assert_fails, change_weights
from tests.tiny import make_model


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert_fails(folder, str(folder), "has no config.json", "give the folder")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"], ids=["cut off", "not an object", "not text"])
def test_config_is_not_json(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert_fails(folder, str(folder / "config.json"), "is not")


def test_wrong_family(folder):
    (folder / "config.json").write_text('{"model_type": "gemma2"}')
    assert_fails(folder, str(folder / "config.json"), "'gemma2'", "supported: gpt_bigcode")


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert_fails(folder, str(folder), "neither model.safetensors nor pytorch_model.bin", "may be partial")


def test_missing_tensors(folder):
    change_weights(folder, lambda w: [w.pop(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")])
    assert_fails(folder, str(folder), "no tensor 'transformer.ln_f.bias' (and 1 more)", "may be partial")


def test_foreign_tensors(folder):
    change_weights(folder, lambda w: w.update({"transformer.h.0.lora_A.weight": torch.ones(2)}))
    assert_fails(folder, str(folder / WEIGHTS), "'transformer.h.0.lora_A.weight'", "not merged")


def test_wrong_shape(folder):
    change_weights(folder, lambda w: w.update({"transformer.wte.weight": torch.ones(7, 64)}))
    assert_fails(folder, str(folder / WEIGHTS), "'transformer.wte.weight' has shape (7, 64)", "(320, 64)")


def test_wrong_shape_of_a_part_of_qkv(tmp_path):
    checkpoint.save(make_model("starcoder2"), tmp_path)
    change_weights(
        tmp_path, lambda w: w.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(64, 64)})
    )
    assert_fails(tmp_path, "'model.layers.1.self_attn.k_proj.weight' has shape (64, 64)", "(32, 64)")


def test_quantized_weights(folder):
    name = "transformer.h.0.mlp.c_fc.weight"
    change_weights(folder, lambda w: w.update({name: w[name].to(torch.int8)}))
    assert_fails(folder, str(folder / WEIGHTS), f"{name!r} is torch.int8", "not quantized")


@pytest.mark.parametrize("size", [0, 5, 100, -1], ids=["empty", "no header", "half a header", "a byte short"])
def test_truncated_safetensors(folder, size):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    assert_fails(folder, str(path), "cannot be read", f"has {path.stat().st_size} bytes", "may be partial")


def test_git_lfs_pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    assert_fails(folder, str(folder / WEIGHTS), "git lfs pull")


def test_index_names_a_missing_shard(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path, max_shard_bytes=50_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    assert_fails(tmp_path, "model.safetensors.index.json", repr(shard.name), "missing", "may be partial")


@pytest.mark.parametrize("shard", ["../model.safetensors", "model.pkl"])
def test_index_cannot_lead_elsewhere(folder, shard):
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert_fails(folder, "model.safetensors.index.json", repr(shard), "beside its index")


def test_index_without_a_map(folder):
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert_fails(folder, "model.safetensors.index.json", "no weight_map")


class Intruder:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save_as", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_bin_with_objects_is_refused_and_nothing_of_it_runs(folder, save_as):
    (folder / WEIGHTS).unlink()
    trace = folder / "trace"
    save_as({"transformer.wte.weight": Intruder(trace)}, folder / "pytorch_model.bin")

    assert_fails(folder, str(folder / "pytorch_model.bin"), "convert it to safetensors")
    assert not trace.exists()


def test_bin_of_something_else(folder):
    as_bin(folder, lambda w: w.update(model={"x": torch.ones(1)}))
    assert_fails(folder, str(folder / "pytorch_model.bin"), "not a flat dictionary of tensors")


def test_truncated_bin(folder):
    as_bin(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_fails(folder, str(path), "cannot be read", "may be partial")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file, so it cannot be refused")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_file_that_may_not_be_read(folder, name):
    (folder / name).chmod(0)
    assert_fails(folder, str(folder / name), "may not be read", "right to read")


def test_python_files_of_a_checkpoint_are_not_run(folder):
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))

    checkpoint.load(folder)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
        checkpoint.load(folder, device=device)
