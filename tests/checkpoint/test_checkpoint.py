"""A checkpoint loads and saves bit for bit, old layouts included; parity/test_model.py asks transformers."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from starcoder import checkpoint
from tests.checkpoint.spoil import WEIGHTS, as_bin, assert_same_weights, change_weights
from tests.tiny import VARIANTS, make_model


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_loads_bit_for_bit(variant, max_shard_bytes, tmp_path):
    model = make_model(variant)

    checkpoint.save(model, tmp_path, max_shard_bytes=max_shard_bytes)

    loaded = checkpoint.load(tmp_path)
    assert_same_weights(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2-untied"])
def test_dtype_is_the_checkpoints_unless_asked(variant, tmp_path):
    model = make_model(variant).bfloat16()
    checkpoint.save(model, tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in checkpoint.load(tmp_path).parameters()} == {torch.bfloat16}
    assert_same_weights(checkpoint.load(tmp_path, dtype=torch.float32), model.float())


def test_tied_weights_stay_one_tensor(folder):
    model = checkpoint.load(folder)

    assert model.head.weight is model.embed.weight
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)


def test_training_a_loaded_model_leaves_its_files_alone(folder):
    before = (folder / WEIGHTS).read_bytes()
    model = checkpoint.load(folder)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(folder):
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.norm.bias.add_(1.0)

    checkpoint.save(model, folder, max_shard_bytes=50_000)
    assert_same_weights(checkpoint.load(folder), model)
    assert not (folder / WEIGHTS).exists(), "the earlier whole file would win over the new shards"

    checkpoint.save(model, folder)
    assert_same_weights(checkpoint.load(folder), model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]


def test_a_failed_save_leaves_the_good_files(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = []

    def fail_at_the_third_shard(tensors, path, **options):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr("starcoder.checkpoint.writer.save_file", fail_at_the_third_shard)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(make_model("starcoder2"), folder, max_shard_bytes=50_000)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_everything_saved_may_be_read_by_whom_new_files_may_be(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path)
    (tmp_path / "new").touch()
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_extra_config_is_written(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path, extra_config={"eos_token_id": 7, "recipe": "nano"})

    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["recipe"]) == (7, "nano")


LOAD = """
import sys
from starcoder import checkpoint
checkpoint.load(sys.argv[1])
print(*sorted(sys.modules.keys() & {"huggingface_hub", "transformers", "sympy"}))
"""


def test_loading_a_folder_imports_nothing_slow(folder):
    # sympy comes with random initialization on the meta device: 2 s that no load should pay.
    imported = subprocess.check_output([sys.executable, "-c", LOAD, str(folder)], text=True)

    assert imported.split() == []


def test_santacoder_style_bin_loads(folder):
    expected = checkpoint.load(folder)

    def age(tensors):
        for layer in range(3):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]

    as_bin(folder, age)

    assert_same_weights(checkpoint.load(folder), expected)


def test_sharded_bin_loads(folder):
    expected = checkpoint.load(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {"pytorch_model-1.bin": sorted(tensors)[:9], "pytorch_model-2.bin": sorted(tensors)[9:]}
    for file, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert_same_weights(checkpoint.load(folder), expected)


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2"])
def test_names_without_the_inner_models_prefix_load(variant, tmp_path):
    model = make_model(variant)
    checkpoint.save(model, tmp_path)

    def shorten(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.").removeprefix("model.")] = tensors.pop(name)

    change_weights(tmp_path, shorten)

    assert_same_weights(checkpoint.load(tmp_path), model)


def test_tied_weights_under_the_heads_name_load(folder):
    expected = checkpoint.load(folder)

    change_weights(folder, lambda w: w.update({"lm_head.weight": w.pop("transformer.wte.weight")}))

    assert_same_weights(checkpoint.load(folder), expected)


def test_safetensors_win_over_bin(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never opened")

    checkpoint.load(folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("variant", ["bigcode-multi-head", "starcoder2"])
def test_weights_arrive_on_the_gpu(variant, tmp_path):
    model = make_model(variant)
    checkpoint.save(model, tmp_path)

    loaded = checkpoint.load(tmp_path, device="cuda", dtype=torch.bfloat16)

    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert_same_weights(loaded.cpu(), model.bfloat16())
