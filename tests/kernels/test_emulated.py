"""The variant of another processor, run in an emulator, computes what the portable one does."""

import shutil
import subprocess
from pathlib import Path

import pytest

import starcoder.kernels

CSRC = Path(starcoder.kernels.__file__).parent / "csrc"
DRIVER = Path(__file__).parent / "sanitize.cpp"
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FLAGS = {"neon": ["-march=armv8.2-a+dotprod"]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="there is no aarch64-linux-gnu-g++ (g++-aarch64-linux-gnu)"),
    pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-aarch64 (qemu-user)"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    common = [str(COMPILER), "-std=c++17", "-O2", "-Wall", "-Werror", "-ffp-contract=off", f"-I{CSRC}"]
    objects = []
    for source in [*sorted(CSRC.glob("*.cpp")), DRIVER]:
        name = source.stem.removeprefix("variant_")
        if name.startswith("avx"):
            continue
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([*common, *FLAGS.get(name, []), "-c", source, "-o", objects[-1]], check=True)
    subprocess.run([*common, "-static", "-pthread", *objects, "-o", folder / "driver"], check=True)
    return folder / "driver"


@pytest.mark.parametrize(
    ("processor", "variants"),
    [("max", ["neon_dotprod", "portable"]), ("cortex-a53", ["portable"])],  # a53 has no dot products
)
def test_every_variant_of_the_processor_equals_the_portable_one(processor, variants, program):
    command = [str(EMULATOR), "-cpu", processor, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == variants
