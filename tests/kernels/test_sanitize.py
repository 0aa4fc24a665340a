"""The kernels read and write nothing outside their arrays, and no thread what another one writes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import starcoder.kernels

CSRC = Path(starcoder.kernels.__file__).parent / "csrc"
DRIVER = Path(__file__).parent / "sanitize.cpp"
COMPILER = shutil.which("g++") or shutil.which("clang++")
FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma"],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the flags here are those of x86-64"),
]


def compiled(folder: Path, sanitizers: str) -> Path:
    assert COMPILER is not None
    common = [COMPILER, "-std=c++17", "-O1", "-g", "-w", "-ffp-contract=off", f"-fsanitize={sanitizers}"]
    common += ["-fno-sanitize-recover=all", f"-I{CSRC}"]
    objects = []
    for source in [*sorted(CSRC.glob("*.cpp")), DRIVER]:
        name = source.stem.removeprefix("variant_")
        if name == "neon":
            continue
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([*common, *FLAGS.get(name, []), "-c", source, "-o", objects[-1]], check=True)
    program = folder / "sanitize"
    subprocess.run([*common, "-pthread", *objects, "-o", program], check=True)
    return program


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers, tmp_path):
    done = subprocess.run([compiled(tmp_path, sanitizers)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "portable" in done.stdout.split()
