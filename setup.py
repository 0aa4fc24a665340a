"""Builds the optional native libraries: plain shared libraries that `ctypes` loads, with no Python inside.

One wheel therefore serves every Python 3 of a platform (`py3-none-PLATFORM`). Where there is no C++ compiler
the installation succeeds without the libraries, and torch and numpy do their work.
"""

import hashlib
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "starcoder/kernels/csrc"
# No -march=native: a wheel runs on other machines, and the library asks the processor what it has.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
# gcc 12 takes its own AVX-512 header for uninitialized.
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
VARIANTS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", *QUIET],
    },
    "arm64": {"neon": ["-march=armv8.2-a+dotprod"]},
}


def variants() -> dict[str, list[str]]:
    words = os.environ.get("ARCHFLAGS", "").split()  # set when cross-compiling on macOS
    machine = words[words.index("-arch") + 1] if "-arch" in words else platform.machine().lower()
    return VARIANTS.get({"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine), {})


def abi_number() -> int:
    """As `starcoder.kernels.native.abi_number`, which compares it."""
    header = Path(FOLDER, "starcoder.h").read_bytes().replace(b"\r\n", b"\n")
    return int.from_bytes(hashlib.sha256(header).digest()[:4], "big") >> 1


class BuildNative(build_ext):
    """Each variant's file gets its own flags; nothing of Python is linked, so names have no Python tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        objects = []
        for source in ext.sources:
            name = source.rsplit("variant_", 1)[-1].removesuffix(".cpp")
            flags = [*FLAGS, f"-DSC_ABI={abi_number()}", *variants().get(name, [])]
            objects += self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")


class PlatformWheel(bdist_wheel):
    """For every Python 3 and every ABI, of one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


files = [
    "pool",
    "step",
    "rounding",
    "dispatch",
    "variant_portable",
    *(f"variant_{name}" for name in variants()),
]
native = Extension(
    "starcoder.kernels._native",
    [f"{FOLDER}/{name}.cpp" for name in files],
    depends=[str(path) for path in sorted(Path(FOLDER).iterdir()) if path.suffix in (".h", ".inl")],
    language="c++",
    optional=True,
)
shingles = Extension(
    "starcoder.prepare._native", ["starcoder/prepare/csrc/shingles.cpp"], language="c++", optional=True
)
setup(ext_modules=[native, shingles], cmdclass={"bdist_wheel": PlatformWheel, "build_ext": BuildNative})
