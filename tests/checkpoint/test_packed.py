"""A quantized checkpoint is the quantized network: on the fly, saved and mapped, all bit for bit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from starcoder import checkpoint
from starcoder.errors import CheckpointError, ConfigError
from starcoder.model import Transformer, causal
from starcoder.plan import KNOWN, weight_bytes
from starcoder.quantize import Report, quantize
from tests.tiny import VARIANTS, make_model

SCHEMES = ["int8", "int4"]


def assert_same_state(one: Transformer, other: Transformer) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}


def assert_same_report(report: Report, expected: Report) -> None:
    """The same layers; errors may be summed in another order."""
    pairs = list(zip(report.layers, expected.layers, strict=True))
    assert [replace(ours, error=0.0) for ours, _ in pairs] == [replace(its, error=0.0) for _, its in pairs]
    assert [ours.error for ours, _ in pairs] == pytest.approx([its.error for _, its in pairs], rel=1e-5)
    assert (report.num_parameters, report.size_bytes) == (expected.num_parameters, expected.size_bytes)


@pytest.fixture
def int4_folder(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path / "model")
    network, _ = checkpoint.quantize(tmp_path / "model", "int4")
    checkpoint.save(network, tmp_path / "int4")
    return tmp_path / "int4"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matrix_by_matrix_equals_the_whole_network_quantized(variant, scheme, tmp_path):
    model = make_model(variant).bfloat16()
    checkpoint.save(model, tmp_path)
    expected = quantize(model, scheme)

    network, report = checkpoint.quantize(tmp_path, scheme)

    assert_same_state(network, model)
    assert_same_report(report, expected)
    assert_same_state(checkpoint.load(tmp_path, quantize=scheme), model)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_quantized_loads_bit_for_bit_and_computes_the_same(variant, scheme, tmp_path):
    model = make_model(variant)
    config = model.config
    quantize(model, scheme)

    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path)

    assert_same_state(loaded, model)
    assert (loaded.config, loaded.training) == (config, False)
    assert checkpoint.scheme_of(tmp_path) == scheme
    tokens = torch.arange(5)[None]
    attend = causal(config.sliding_window)
    assert torch.equal(loaded(tokens, tokens, attend), model(tokens, tokens, attend))


def test_packed_weights_are_mapped_on_whole_cache_lines_and_shared(int4_folder):
    loaded = checkpoint.load(int4_folder)

    file = (int4_folder / "model.safetensors").resolve()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [tuple(int(end, 16) for end in row[0].split("-")) for row in maps if row[-1] == str(file)]
    for name, buffer in loaded.named_buffers():
        assert any(start <= buffer.data_ptr() < end for start, end in ranges), name
        assert buffer.data_ptr() % (64 if name.endswith("data") else 4) == 0, name
    assert loaded.head.data.data_ptr() == loaded.embed.data.data_ptr()
    assert not any(name.startswith("head") for name in load_file(file))


def test_a_file_has_the_bytes_that_the_planner_says(int4_folder):
    size = (int4_folder / "model.safetensors").stat().st_size
    expected = weight_bytes(checkpoint.read_config(int4_folder), "int4")
    assert expected < size < expected + 10_000


def test_the_same_scheme_may_be_named_and_another_may_not(int4_folder):
    assert_same_state(checkpoint.load(int4_folder, quantize="int4"), checkpoint.load(int4_folder))
    for attempt in (
        lambda: checkpoint.load(int4_folder, quantize="int8"),
        lambda: checkpoint.quantize(int4_folder, "int4"),
    ):
        with pytest.raises(ConfigError, match="is quantized already, to int4") as caught:
            attempt()
        assert "made from" in caught.value.hint


def test_other_floats_beside_quantized_weights_are_refused_on_a_cpu(int4_folder):
    with pytest.raises(ConfigError, match="dtype bfloat16 does not go with quantized weights"):
        checkpoint.load(int4_folder, dtype=torch.bfloat16)


def test_quantized_by_another_tool_is_refused(int4_folder):
    edit_config(int4_folder, quant_method="gptq")
    assert checkpoint.scheme_of(int4_folder) is None
    with pytest.raises(CheckpointError, match="weights are quantized"):
        checkpoint.load(int4_folder)


@pytest.mark.parametrize("change", [{"version": 3}, {"version": 1}, {"scheme": "int3"}])
def test_a_layout_of_another_version_is_named(change, int4_folder):
    edit_config(int4_folder, **change)
    with pytest.raises(CheckpointError, match="which this version cannot read") as caught:
        checkpoint.load(int4_folder)
    assert "upgrade starcoder" in caught.value.hint


def test_groups_of_another_size_are_not_misread(int4_folder):
    edit_config(int4_folder, matrices={"blocks": {"scheme": "int4", "group_size": 64}})
    with pytest.raises(CheckpointError, match="describes quantized matrices"):
        checkpoint.load(int4_folder)


def test_what_the_file_lacks_holds_besides_or_misshapes_is_named(int4_folder):
    file = int4_folder / "model.safetensors"
    good = load_file(file)
    scales = "blocks.0.attention.qkv.scales"
    for state, message in (
        ({name: t for name, t in good.items() if name != scales}, f"has no tensor '{scales}'"),
        (good | {"extra": torch.zeros(1)}, "holds a tensor that config.json has no place for: 'extra'"),
        (good | {scales: good[scales][:1].clone()}, rf"{scales}' is \(1, 4, 16\) of torch.uint8"),
        (good | {scales: good[scales].float()}, r"of torch.float32, .* of torch.uint8"),
    ):
        save_file(state, file)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(int4_folder)


def test_a_truncated_file_is_named(int4_folder):
    file = int4_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(int4_folder)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


MEASURE = """
import sys, torch
from starcoder import checkpoint
import starcoder.quantize

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.set_num_threads(1)
starcoder.quantize.quantize_matrix(torch.randn(64, 64), "int8", method="nearest")  # torch's own start
before = resident("VmRSS:")
model = checkpoint.load(sys.argv[1], quantize="int8")
print(resident("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_quantizing_on_the_fly_never_holds_the_full_weights(tmp_path):
    """Packed weights, one matrix as it is read, the slices in which it is rounded: not 4 x of float32."""
    config = replace(KNOWN["bigcode/tiny_starcoder_py"], vocab_size=2048, max_positions=256, num_layers=12)
    model = Transformer(config)
    model.initialize(torch.Generator().manual_seed(0))
    checkpoint.save(model, tmp_path)

    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    peak = int(subprocess.check_output(command, text=True))

    packed = weight_bytes(config, "int8")
    full = weight_bytes(config, "float32")
    assert packed < peak < packed + 80e6 < full
