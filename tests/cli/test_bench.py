"""`starcoder bench` counts what the engine did and divides by what the machine can do."""

import json

import pytest

from starcoder import checkpoint
from starcoder.cli import main
from starcoder.plan import cache_bytes, read_bytes


def test_the_document_adds_up(folder, capsys):
    assert main(["bench", "--model", str(folder), "--quantize", "int8", "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    config = checkpoint.read_config(folder)
    assert (found["weights"], found["num_parameters"]) == ("int8", config.num_parameters)
    assert found["rounds"] == 3
    assert 200 < found["prompt_tokens"] <= 256 and found["new_tokens"] == 64  # half of the context of 512
    expected = read_bytes(config, "int8") + cache_bytes(config, "int8", 8 + 32)
    assert found["read_bytes_per_token"] == expected
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "machine_gb_per_s", "share_of_bandwidth"):
        assert 0 < found[name]["least"] <= found[name]["median"] <= found[name]["largest"], name
    decode = found["decode_tokens_per_s"]["median"] * expected / 1e9
    assert found["decode_gb_per_s"]["median"] == pytest.approx(decode)
    assert found["peak_bytes"] > 50e6


def test_people_get_a_table(folder, capsys):
    assert (
        main(["bench", "-m", str(folder), "--rounds", "1", "--prompt-tokens", "40", "--max-tokens", "8"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0.2M parameters in float32, loaded in ")
    assert any(line.startswith("decode of 8 tokens, tokens/s") for line in lines)
    assert any(line.startswith("share of that") and "%" in line for line in lines)
    assert lines[-1].startswith("peak memory ")


def test_mistakes_are_two_lines(folder, capsys):
    assert main(["bench", "-m", str(folder), "--max-tokens", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: max_tokens is 1; expected at least 2"
