"""docs/quantization.md tells the truth: its memory table is the planner's, its JSON what a folder says."""

import json
import re
from pathlib import Path

import pytest

from starcoder import checkpoint
from starcoder.plan import CHOICES, KNOWN, plan
from starcoder.quantize import _GROUP_SIZES
from tests.tiny import make_model

TEXT = (Path(__file__).parent.parent / "docs" / "quantization.md").read_text("utf-8")


def test_the_memory_table_is_what_the_planner_computes():
    rows = re.findall(r"^\| (\w+) \| ([\d,.]+) MB \| ([\d,.]+) MB \|", TEXT, re.MULTILINE)
    expected = [
        (weights, f"{one.weight_bytes / 1e6:,.2f}", f"{one.total_bytes / 1e6:,.2f}")
        for weights in CHOICES
        for one in [plan(KNOWN["bigcode/starcoder"], weights)]
    ]
    assert rows == expected


def test_int8_takes_less_than_the_first_readme_printed():
    printed = float(re.search(r"^\| int8 .* ([\d,.]+) MB \|$", TEXT, re.MULTILINE)[1].replace(",", ""))
    assert printed == 15_939.61
    assert plan(KNOWN["bigcode/starcoder"], "int8").weight_bytes / 1e6 < printed


@pytest.mark.parametrize("scheme", ["int4"])
def test_the_entry_of_config_json_is_the_one_that_is_written(scheme, tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path / "model")
    checkpoint.quantize_folder(tmp_path / "model", tmp_path / "quantized", scheme, method="nearest")
    written = json.loads((tmp_path / "quantized" / "config.json").read_text())["quantization_config"]
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)[1]
    assert json.loads("{" + block + "}")["quantization_config"] == written


def test_the_group_sizes_are_those_of_the_code():
    assert _GROUP_SIZES == {"int4": 32, "int8": 64}
