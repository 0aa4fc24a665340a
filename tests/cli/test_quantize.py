"""`starcoder quantize` writes a folder that stands alone, whole or not at all; `--quantize` does the same."""

import json

import pytest

from starcoder import checkpoint
from starcoder.checkpoint import writer
from starcoder.cli import main
from starcoder.plan import weight_bytes


def completed(capsys, *arguments: str) -> list[int]:
    command = ["generate", "def add(a, b):", "--max-tokens", "12", "--ignore-eos", "--json", *arguments]
    assert main(command) == 0
    return json.loads(capsys.readouterr().out)["tokens"]


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_folder_generates_what_the_flag_does(scheme, folder, tmp_path, capsys):
    output = tmp_path / "quantized"
    assert main(["quantize", str(folder), "--scheme", scheme, "--output", str(output)]) == 0
    printed = capsys.readouterr().out

    assert completed(capsys, "--model", str(output)) == completed(
        capsys, "--model", str(folder), "--quantize", scheme
    )
    size = weight_bytes(checkpoint.read_config(folder), scheme)
    assert f"{size / 1e6:.1f} MB" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith(f"written to {output}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()


def test_the_document_reports_every_matrix(folder, tmp_path, capsys):
    assert main(["quantize", str(folder), "-o", str(tmp_path / "int4"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert (found["scheme"], found["output"]) == ("int4", str(tmp_path / "int4"))
    names = [layer["name"] for layer in found["layers"]]
    assert len(names) == len({*names}) == 2 + 4 * 3
    assert names[:3] == ["embed", "positions", "blocks.0.attention.qkv"]
    assert all(
        0 < layer["error"] < (0.02 if layer["scheme"] == "int8" else 0.15) for layer in found["layers"]
    )
    assert found["size_bytes"] == weight_bytes(checkpoint.read_config(folder), "int4")


def test_what_config_json_said_stays_said(folder, tmp_path):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 7, "extra": [1]}))
    checkpoint.quantize_folder(folder, tmp_path / "int8", "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert (config["eos_token_id"], config["extra"]) == (7, [1])
    assert config["quantization_config"]["scheme"] == "int8"


def test_a_failure_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writer.packed, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.quantize_folder(folder, tmp_path / "int8", "int8")
    assert list(tmp_path.iterdir()) == [folder]


def test_mistakes_are_two_lines(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    checkpoint.quantize_folder(folder, tmp_path / "int8", "int8")
    new, quantized = str(tmp_path / "new"), str(tmp_path / "int8")
    for command, code, error in (
        (["quantize", str(folder), "-o", str(tmp_path / "full")], 2, "there is something at"),
        (["quantize", quantized, "-o", new], 2, f"'{quantized}' is quantized already, to int8"),
        (["quantize", str(folder)], 2, "--output needs a value"),
        (["quantize", str(folder), "-o", new, "--scheme", "int3"], 2, "--scheme is 'int3'; expected one of"),
        (["quantize", str(tmp_path / "nowhere"), "-o", new], 1, "there is no folder"),
        (["generate", "x", "-m", quantized, "--quantize", "int4"], 2, f"'{quantized}' is quantized already"),
        (["generate", "x", "-m", quantized, "--dtype", "bfloat16"], 2, "dtype bfloat16 does not go with"),
    ):
        assert main(command) == code, command
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and error in lines[0] and lines[1].startswith("hint: "), (command, lines)
    assert not (tmp_path / "new").exists()
