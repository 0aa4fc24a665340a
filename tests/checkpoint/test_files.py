"""Broken, foreign and hostile folders fail with the file's name and a hint; nothing of them runs."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from starcoder import checkpoint
from starcoder.cli import main
from starcoder.engine import local
from starcoder.errors import CheckpointError, ConfigError
from starcoder.quantize import quantize
from tests.checkpoint.spoil import WEIGHTS, as_bin, assert_fails, assert_same_weights, change_weights
from tests.tiny import make_model, make_tokenizer


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


def test_config_with_a_byte_order_mark_is_read(folder):
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert checkpoint.load(folder).config.family == "gpt_bigcode"


def test_an_adapter_alone_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "bigcode/starcoder2-3b"}')
    assert_fails(tmp_path, "is an adapter", f"--model bigcode/starcoder2-3b --adapter {tmp_path}")
    with pytest.raises(CheckpointError, match="is an adapter"):
        local.load(tmp_path)


def test_config_is_looked_at_before_the_tokenizer(folder):
    (folder / "config.json").write_text('{"model_type": "refact"}')
    with pytest.raises(CheckpointError, match="'refact', which is not supported"):
        local.load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_git_lfs_pointer_is_called_so(name, folder):
    make_tokenizer("starcoder", folder)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError) as failure:
        local.load(folder)
    assert "Git LFS pointer" in f"{failure.value.message} {failure.value.hint}"
    assert "git lfs pull" in failure.value.hint


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."])
def test_names_of_a_wrapped_model_load(wrapper, folder):
    expected = checkpoint.load(folder)
    change_weights(folder, lambda w: [w.update({wrapper + name: w.pop(name)}) for name in list(w)])
    assert_same_weights(checkpoint.load(folder), expected)


def test_all_names_foreign_shows_one(folder):
    change_weights(folder, lambda w: [w.update({f"net.{name}": w.pop(name)}) for name in list(w)])
    assert_fails(folder, "no tensor", "have other names, such as 'net.transformer.h.0.attn.c_attn.bias'")


def test_old_gptq_folder_is_named(folder):
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    assert_fails(folder, "GPTQ or AWQ", "take the checkpoint that it was made from")
    (folder / WEIGHTS).rename(folder / "gptq_model-4bit-128g.safetensors")
    assert_fails(folder, "GPTQ or AWQ")
    with pytest.raises(CheckpointError, match="GPTQ or AWQ"):
        checkpoint.read_config(folder)


def test_packed_tensors_of_gptq_are_named(folder):
    change_weights(folder, lambda w: w.update({"transformer.h.0.attn.c_attn.qweight": torch.ones(2, 2)}))
    assert_fails(folder, "GPTQ or AWQ")


def test_unused_bitsandbytes_settings_are_no_quantization(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": False, "load_in_8bit": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.load(folder).config.family == "gpt_bigcode"


def test_a_head_that_differs_is_kept(folder, tmp_path, caplog):
    """As transformers 5 does, whatever config.json says of tied weights; what is written says so."""
    head = torch.randn(320, 64)
    change_weights(folder, lambda w: w.update({"lm_head.weight": head}))

    model = checkpoint.load(folder)

    assert torch.equal(model.head.weight, head)
    assert not torch.equal(model.embed.weight, head)
    assert "two that differ" in caplog.text
    checkpoint.quantize_folder(folder, tmp_path / "int8", "int8")
    assert not checkpoint.load(tmp_path / "int8").config.tied_embeddings
    checkpoint.save(model, folder, extra_config=json.loads((folder / "config.json").read_text()))
    assert torch.equal(checkpoint.load(folder).head.weight, head)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_quantized(value, folder, tmp_path):
    change_weights(folder, lambda w: w["transformer.h.1.mlp.c_fc.weight"].__setitem__((3, 5), value))
    with pytest.raises(CheckpointError, match=r"'blocks.1.feed_forward.up' are not finite"):
        checkpoint.quantize_folder(folder, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(checkpoint.load(folder), "int4")


def test_a_full_disk_is_noticed_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**9, 0, 1000))
    for write in (
        lambda: checkpoint.quantize_folder(folder, tmp_path / "out", "int8"),
        lambda: checkpoint.save(checkpoint.load(folder), tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match="its disk has 0 MB left"):
            write()
    assert not (tmp_path / "out").exists()


def test_errors_of_the_system_are_two_lines(folder, tmp_path, monkeypatch, capfd):
    def fail(*args, **options):
        raise OSError(None, "147456 requested and 6912 written")

    monkeypatch.setattr("starcoder.checkpoint.packed.write", fail)
    output = tmp_path / "out"
    assert main(["quantize", str(folder), "--scheme", "int8", "-o", str(output)]) == 1
    error, hint = capfd.readouterr().err.splitlines()
    assert error.startswith("error: ") and "make room on the disk" in hint
    assert not output.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "-o /proc/none/out"])
def test_output_that_cannot_be_written_is_two_lines(redirection, folder):
    command = f"{sys.executable} -m starcoder plan {folder} {redirection}"
    if redirection.startswith("-o"):
        command = f"{sys.executable} -m starcoder quantize {folder} {redirection}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2), done.stderr
    assert done.stderr.startswith("error: ")
