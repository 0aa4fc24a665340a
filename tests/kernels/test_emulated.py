"""Variants of other processors, emulated, compute what the portable one does and share no code with others.

NEON runs in qemu; AVX-512 runs as plain C++ through SIMDe's intrinsics, on any x86-64.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import starcoder.kernels

CSRC = Path(starcoder.kernels.__file__).parent / "csrc"
HERE = Path(__file__).parent
DRIVER = HERE / "sanitize.cpp"
CROSS_COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
COMPILER = shutil.which("g++")
NEON, AVX2 = ["-march=armv8.2-a+dotprod"], ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]

pytestmark = pytest.mark.slow
on_x86_64 = pytest.mark.skipif(
    COMPILER is None or os.uname().machine != "x86_64", reason="there is no g++ for x86-64"
)


def compiled(compiler: str, flags: dict[str, list[str]], folder: Path) -> list[Path]:
    """Objects of the driver and all sources, variants only where they have `flags`."""
    common = [compiler, "-std=c++17", "-O2", "-w", "-ffp-contract=off", f"-I{CSRC}"]
    objects = []
    for source in [*sorted(CSRC.glob("*.cpp")), DRIVER]:
        name = source.stem
        if name.startswith("variant_") and name not in {"variant_portable", *flags}:
            continue
        objects.append(folder / f"{name}.o")
        subprocess.run([*common, *flags.get(name, []), "-c", source, "-o", objects[-1]], check=True)
    return objects


def assert_runs(command: list[str], variants: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == variants


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory) -> Path:
    if CROSS_COMPILER is None or EMULATOR is None:
        pytest.skip("there is no aarch64-linux-gnu-g++ or no qemu-aarch64")
    folder = tmp_path_factory.mktemp("aarch64")
    objects = compiled(CROSS_COMPILER, {"variant_neon": NEON}, folder)
    subprocess.run([CROSS_COMPILER, "-static", "-pthread", *objects, "-o", folder / "driver"], check=True)
    return folder / "driver"


@pytest.mark.parametrize(
    ("processor", "variants"),
    [("max", ["neon_dotprod", "portable"]), ("cortex-a53", ["portable"])],  # a53 has no dot products
)
def test_neon_equals_the_portable_variant(processor, variants, arm_program):
    assert_runs([str(EMULATOR), "-cpu", processor, str(arm_program)], variants)


@on_x86_64
@pytest.mark.skipif(not Path("/usr/include/simde/x86/avx512.h").exists(), reason="there is no libsimde-dev")
def test_avx512_equals_the_portable_variant(tmp_path):
    flags = {
        "variant_avx512": [f"-I{HERE / 'simde'}"],
        "dispatch": ["-D__builtin_cpu_supports(name)=(*name != 'a' || name[3] == '5')"],
    }
    flags |= {"variant_avx2": AVX2}
    objects = compiled(str(COMPILER), flags, tmp_path)
    subprocess.run([str(COMPILER), "-pthread", *objects, "-o", tmp_path / "driver"], check=True)
    assert_runs([str(tmp_path / "driver")], ["avx512_vnni", "portable"])


@on_x86_64
def test_instructions_of_a_variant_are_in_no_other_code(tmp_path):
    """The linker keeps one of two equal inline functions: it must not be the one of a better processor."""
    objects = compiled(str(COMPILER), {"variant_avx2": AVX2, "variant_avx512": AVX512}, tmp_path)
    for path in objects:
        listed = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
        is_wide = path.stem in ("variant_avx2", "variant_avx512")
        assert ("%ymm" in code) == is_wide
        assert ("%zmm" in code) == (path.stem == "variant_avx512")
        if is_wide:
            assert not [line for line in listed.splitlines() if line.split()[-2:-1] in (["W"], ["V"], ["u"])]
