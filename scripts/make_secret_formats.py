"""Make starcoder/prepare/secret_formats.toml from gitleaks' rules and scripts/own_secret_formats.toml.

    git clone https://github.com/gitleaks/gitleaks
    python scripts/make_secret_formats.py gitleaks 8.30.1

Gitleaks is under the MIT license, copyright Zachary Rice. Its Go patterns become Python's, may be followed by
any sign that does not continue the value, and lose the name before the telling word, which is not needed.
Rules that this package has better ones for (assignments, private keys, JSON web tokens) are left out.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from starcoder.prepare.secret_formats import python_pattern

_LEFT_OUT = {
    "generic-api-key",
    "private-key",
    "jwt",
    "jwt-base64",
    "kubernetes-secret-yaml",
    "curl-auth-user",
}
_LEFT_OUT |= {
    "curl-auth-header",
    "nuget-config-password",
    "pkcs12-file",
    "aws-access-token",
    "hashicorp-tf-password",
}
_END = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
_BEFORE = r"(?i)[\w.-]{0,50}?"


def main(folder: Path, version: str) -> None:
    """Write the data file."""
    theirs = tomllib.loads((folder / "config" / "gitleaks.toml").read_text("utf-8"))["rules"]
    scripts = Path(__file__).parent
    ours = tomllib.loads((scripts / "own_secret_formats.toml").read_text("utf-8"))["rules"]
    lines = ["# Made by scripts/make_secret_formats.py; the form is that of gitleaks' own files."]
    for rule in theirs:
        if rule["id"] not in _LEFT_OUT and "regex" in rule:
            lines += _lines({**rule, "regex": _python(rule["regex"]), "source": f"gitleaks {version} (MIT)"})
    for rule in ours:
        lines += _lines({"source": "own", **rule})
    target = scripts.parent / "starcoder" / "prepare" / "secret_formats.toml"
    target.write_text("\n".join(lines) + "\n", "utf-8")
    for rule in tomllib.loads(target.read_text("utf-8"))["rules"]:
        re.compile(rule["regex"])


def _lines(rule: dict[str, Any]) -> list[str]:
    found = ["", "[[rules]]"]
    for key in (
        "id",
        "kind",
        "source",
        "regex",
        "keywords",
        "entropy",
        "secretGroup",
        "check",
        "replacement",
    ):
        if key in rule:
            value = rule[key]
            if key == "regex":
                text = f"'''{value}'''"
            elif isinstance(value, list):
                text = "[" + ", ".join(f'"{one}"' for one in value) + "]"
            else:
                text = f'"{value}"' if isinstance(value, str) else str(value)
            found.append(f"{key} = {text}")
    return found


def _python(pattern: str) -> str:
    pattern = pattern.replace(_END, r"(?![\w+/=-])")
    if pattern.startswith(_BEFORE):
        pattern = "(?i)" + pattern[len(_BEFORE) :]
    pattern = python_pattern(pattern)
    re.compile(pattern)
    return pattern


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
