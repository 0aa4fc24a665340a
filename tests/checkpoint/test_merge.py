"""Merging writes what peft would, from the unquantized base, whole or not at all."""

import json

import pytest
import torch

from starcoder import checkpoint, cli
from starcoder.adapters.settings import AdapterSettings
from starcoder.engine import local
from starcoder.errors import CheckpointError, ConfigError
from tests.test_adapters import TOKENS, shake
from tests.tiny import by_peft, load_oracle, make_checkpoint, make_tokenizer


def make_adapter(base, folder, *, seed=0, kind="lora", named=True):
    adapter = checkpoint.add_adapter(checkpoint.load(base), AdapterSettings(kind=kind, rank=4, seed=seed))
    shake(adapter.parameters())
    adapter.save(folder, base=str(base) if named else None)
    return folder


@pytest.fixture(params=["bigcode", "bigcode-multi-head", "starcoder2-untied"])
def base(request, tmp_path):
    folder = make_checkpoint(request.param, tmp_path / "base")
    make_tokenizer("starcoder", folder)
    return folder


@pytest.fixture
def small(tmp_path):
    folder = make_checkpoint("bigcode", tmp_path / "base")
    make_tokenizer("starcoder", folder)
    return folder


def test_transformers_loads_what_is_merged_to_the_logits_of_peft(base, tmp_path, capsys):
    adapter = make_adapter(base, tmp_path / "adapter", kind="dora")
    assert cli.main(["merge", str(adapter), "--output", str(tmp_path / "merged"), "--json"]) == 0

    with torch.no_grad():
        expected = by_peft(load_oracle(base), adapter)(TOKENS).logits
        found = load_oracle(tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "float32"
    assert report["logit_difference"] < 1e-4
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (tmp_path / "merged").iterdir()
    }


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_loading_with_an_adapter_is_loading_what_is_merged(base, tmp_path, quantize):
    adapter = make_adapter(base, tmp_path / "adapter")
    checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged")

    expected = checkpoint.load(tmp_path / "merged", quantize=quantize)
    found = checkpoint.load(base, quantize=quantize, adapter=adapter)

    assert expected.state_dict().keys() == found.state_dict().keys()
    assert all(torch.equal(x, found.state_dict()[name]) for name, x in expected.state_dict().items())


def test_the_commands_complete_with_an_adapter_and_its_tokenizer(small, tmp_path, capsys):
    adapter = make_adapter(small, tmp_path / "adapter")
    checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged")
    options = ["generate", "def f", "--max-tokens", "8", "--ignore-eos", "--model"]
    assert cli.main([*options, str(tmp_path / "merged")]) == 0
    merged = capsys.readouterr().out
    assert cli.main([*options, str(small), "--adapter", str(adapter)]) == 0

    assert capsys.readouterr().out == merged
    own = json.loads((small / "tokenizer_config.json").read_text()) | {"chat_template": "mine"}
    (adapter / "tokenizer.json").write_bytes((small / "tokenizer.json").read_bytes())
    (adapter / "tokenizer_config.json").write_text(json.dumps(own))
    assert local.load(small, adapter=adapter).tokenizer.chat_template == "mine"
    checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["chat_template"] == "mine"


def test_several_adapters_add_up_by_their_weights(small, tmp_path):
    adapters = [make_adapter(small, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    report = checkpoint.merge_folder([(adapters[0], 0.7), (adapters[1], -0.5)], tmp_path / "merged")

    bare = checkpoint.load(small).state_dict()
    alone = [checkpoint.load(small, adapter=adapter).state_dict() for adapter in adapters]
    found = checkpoint.load(tmp_path / "merged").state_dict()
    for name, weight in bare.items():
        expected = weight + 0.7 * (alone[0][name] - weight) - 0.5 * (alone[1][name] - weight)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    assert "0.7 times a and -0.5 times b" in (tmp_path / "merged" / "README.md").read_text()
    assert report.adapters == ((str(adapters[0]), 0.7), (str(adapters[1]), -0.5))
    dora = make_adapter(small, tmp_path / "dora", kind="dora")
    with pytest.raises(ConfigError, match="only plain LoRA can be weighted"):
        checkpoint.merge_folder([(dora, 0.5)], tmp_path / "no")


def test_the_bases_dtype_stays(tmp_path):
    base = make_checkpoint("starcoder2", tmp_path / "base", dtype="bfloat16")
    adapter = make_adapter(base, tmp_path / "adapter")
    report = checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged")

    assert report.dtype == "bfloat16"
    assert checkpoint.load(tmp_path / "merged").norm.weight.dtype == torch.bfloat16


def test_another_base_than_the_adapters_is_refused_and_nothing_is_left(small, tmp_path):
    adapter = make_adapter(small, tmp_path / "adapter")
    other = make_checkpoint("bigcode", tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="is an adapter of"):
        checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged", base=other)
    second = make_adapter(other, tmp_path / "second")
    with pytest.raises(CheckpointError, match="of different models"):
        checkpoint.merge_folder([(adapter, 1.0), (second, 1.0)], tmp_path / "merged")
    nameless = make_adapter(small, tmp_path / "nameless", named=False)
    with pytest.raises(ConfigError, match="does not say which model"):
        checkpoint.merge_folder([(nameless, 1.0)], tmp_path / "merged")
    wide = make_checkpoint("bigcode", tmp_path / "wide", n_embd=128)
    with pytest.raises(CheckpointError, match="of shape"):
        checkpoint.merge_folder([(nameless, 1.0)], tmp_path / "merged", base=wide)
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))


def test_a_quantized_base_and_a_place_that_is_taken_are_refused(small, tmp_path):
    adapter = make_adapter(small, tmp_path / "adapter", named=False)
    checkpoint.quantize_folder(small, tmp_path / "packed", "int8")
    for use in (
        lambda: checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged", base=tmp_path / "packed"),
        lambda: checkpoint.load(tmp_path / "packed", adapter=adapter),
    ):
        with pytest.raises(ConfigError, match="merged into weights that are not"):
            use()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="something at"):
        checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "taken", base=small)


def test_the_card_tells_recipe_and_data(small, tmp_path):
    adapter = make_adapter(small, tmp_path / "adapter")
    recipe = {"method": "lora", "source": {"data": "./my-code"}, "seed": 7}
    (adapter / "recipe.json").write_text(json.dumps(recipe))
    checkpoint.merge_folder([(adapter, 1.0)], tmp_path / "merged")

    card = (tmp_path / "merged" / "README.md").read_text()
    assert "Trained on ./my-code." in card
    assert '"seed": 7' in card
    assert '"r": 4' in card


def test_nothing_is_uploaded_unless_asked_for(small, tmp_path, monkeypatch, capsys):
    uploads = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **o: f"https://hub/{name}")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.upload_folder", lambda self, **options: uploads.append(options)
    )
    adapter = make_adapter(small, tmp_path / "adapter")

    assert cli.main(["merge", str(adapter), "-o", str(tmp_path / "one")]) == 0
    assert uploads == []
    assert cli.main(["merge", str(adapter), "-o", str(tmp_path / "two"), "--push-to-hub", "me/mine"]) == 0
    assert uploads == [{"repo_id": "me/mine", "folder_path": tmp_path / "two"}]
    assert "uploaded to https://hub/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no adapter to merge"),
        (["one", "--adapter-weight", "1", "--adapter-weight", "2"], "1 adapters and 2 weights"),
    ],
)
def test_mistakes_on_the_command_line_are_told(tmp_path, capsys, arguments, message):
    assert cli.main(["merge", *arguments, "--output", str(tmp_path / "merged")]) == 2
    assert message in capsys.readouterr().err


def test_the_originals_own_flags_are_understood(monkeypatch, capsys):
    seen = []

    def merge(adapters, output, *, base):
        seen.append((adapters, str(output), base))
        raise CheckpointError("enough is known")

    monkeypatch.setattr(checkpoint, "merge_folder", merge, raising=False)
    line = ["merge", "--base_model_name_or_path", "org/base", "--peft_model_path", "run", "--push_to_hub"]
    assert cli.main(line) == 1
    assert cli.main(["merge", "--peft_model_path=run", "--base_model_name_or_path=org/base"]) == 1
    assert seen == [([("run", 1.0)], "org/base-merged", "org/base")] * 2
    assert cli.main(["merge", "run"]) == 2
    assert "--output" in capsys.readouterr().err
