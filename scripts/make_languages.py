"""Make starcoder/repos/languages.json from linguist's data.

    git clone https://github.com/github-linguist/linguist
    python scripts/make_languages.py linguist

Linguist is under the MIT license, copyright GitHub, Inc. Its Ruby patterns become Python's; the generated
files that it knows by their first lines are read from the methods of generated.rb that look at nothing else.
Which languages Starcoder2 was trained on is taken from version 7.27.0, current when The Stack v2 was made.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_STARCODER2 = "v7.27.0"
_OPTIONS = re.compile(r"\(\?([a-z]*)(?:-m)?\)")


def main(folder: Path) -> None:
    """Write the table."""
    data = folder / "lib" / "linguist"
    listed = yaml.safe_load((data / "languages.yml").read_text("utf-8"))
    trained = set(yaml.safe_load(_at_tag(folder, "lib/linguist/languages.yml")))
    rules = yaml.safe_load((data / "heuristics.yml").read_text("utf-8"))
    named = {name: _pattern(value) for name, value in rules["named_patterns"].items()}
    generated = (data / "generated.rb").read_text("utf-8")
    version = (data / "VERSION").read_text().strip()
    table = {
        "source": f"github-linguist/linguist {version}, MIT, copyright GitHub, Inc.",
        "languages": {
            name: {
                "type": about["type"],
                "extensions": [one.lower() for one in about.get("extensions", [])],
                "filenames": about.get("filenames", []),
                "interpreters": about.get("interpreters", []),
                "aliases": about.get("aliases", []),
                "starcoder2": name in trained,
            }
            for name, about in listed.items()
        },
        "popular": yaml.safe_load((data / "popular.yml").read_text("utf-8")),
        "generic": yaml.safe_load((data / "generic.yml").read_text("utf-8"))["extensions"],
        "heuristics": [
            {"extensions": one["extensions"], "rules": [_rule(rule, named) for rule in one["rules"]]}
            for one in rules["disambiguations"]
        ],
        "vendored": yaml.safe_load((data / "vendor.yml").read_text("utf-8")),
        "generated_paths": _generated_paths(generated),
        "generated_starts": _generated_starts(generated),
    }
    target = Path(__file__).parent.parent / "starcoder" / "repos" / "languages.json"
    lines = []
    for key, value in table.items():
        parts = (
            [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            if isinstance(value, dict)
            else [f"  {json.dumps(one)}" for one in value]
            if isinstance(value, list)
            else []
        )
        ends = "{}" if isinstance(value, dict) else "[]"
        body = f"{ends[0]}\n" + ",\n".join(parts) + f"\n {ends[1]}" if parts else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {body}")
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    json.loads(target.read_text("utf-8"))


def _at_tag(folder: Path, path: str) -> str:
    command = ["git", "-C", str(folder), "show", f"{_STARCODER2}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _rule(rule: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    """`languages` counts if every pattern of `all` and none of `none` is found."""
    languages = rule.get("language", [])
    found: dict[str, Any] = {"languages": [languages] if isinstance(languages, str) else languages}
    for part in rule.get("and", [rule]):
        if "pattern" in part:
            found.setdefault("all", []).append(_pattern(part["pattern"]))
        if "named_pattern" in part:
            found.setdefault("all", []).append(named[part["named_pattern"]])
        if "negative_pattern" in part:
            found.setdefault("none", []).append(_pattern(part["negative_pattern"]))
    return found


def _pattern(value: str | list[str]) -> str:
    """A Ruby pattern, or the union of several, in Python's notation."""
    if isinstance(value, list):
        return "|".join(f"(?:{_pattern(one)})" for one in value)
    value = re.sub(r"\(\?<(?=[a-zA-Z])", "(?P<", value.replace("\\z", "\\Z").replace("\\h", "[0-9a-fA-F]"))
    value = value.replace("[\\s&&[^\\r\\n]]", "[^\\S\\r\\n]")  # Python has no intersections of sets
    value = re.sub(r"\\g<(\w+)>", r"(?P=\1)", value)
    match = _OPTIONS.search(value)
    if match:  # Python has options for a whole group only
        before, options, after = value[: match.start()], match[1], value[match.end() :]
        value = f"{before}(?{options}:{after}\n)" if options else before + after
        value = value.replace("\n)", ")") if "x" not in options else value
    re.compile(value, re.MULTILINE)
    return value


def _methods(ruby: str) -> list[str]:
    return re.findall(r"^    def \w+\?\n(.*?)^    end$", ruby, re.MULTILINE | re.DOTALL)


def _generated_paths(ruby: str) -> list[str]:
    """Patterns of the methods that look at the path alone."""
    found = []
    for body in _methods(ruby):
        if "lines" in body or "data" in body:
            continue
        for pattern, options in re.findall(r"name\.match\??\(/((?:\\.|[^/\\\n])*)/(i?)\)", body):
            pattern = pattern.replace("\\/", "/")
            found.append(f"(?i:{pattern})" if options else pattern)
        for ends in re.findall(r"\[([^\]]*)\]\.include\?\(extname\)", body):
            found += [f"{re.escape(end)}$" for end in re.findall(r"'([^']+)'", ends)]
    return found


def _generated_starts(ruby: str) -> list[dict[str, Any]]:
    """Extensions, how many first lines, and the strings there that say so: one of them, or all."""
    constants = dict(re.findall(r"^    ([A-Z_]+) = \[(.*?)\]", ruby, re.MULTILINE | re.DOTALL))
    found = []
    for body in _methods(ruby):
        code = "\n".join(line for line in body.split("\n") if not line.strip().startswith("#"))
        ends = re.search(
            r"(?:extname(?:\.downcase)? == ([\"']\.\w+[\"'])|\[([^\]]*)\]\.include\?\(? ?extname"
            r"|%w\{([^}]*)\}\.include\? extname|([A-Z_]+)\.include\?\(extname)",
            code,
        )
        texts = re.findall(r"(?:include\?|start_with\?)[ (]([\"'])(.*?)\1", code)
        numbers = [int(one) for one in re.findall(r"first\((\d+)\)", code)]
        numbers += [int(one) + 1 for one in re.findall(r"lines\[(?:0\.\.)?(\d+)\]", code)]
        is_plain = not re.search(r"lines\[-|last\(|=~|match|score|scan", code)
        if not (ends and texts and numbers and is_plain):
            continue
        listed = ends[1] or ends[2] or constants.get(ends[4] or "", "") or ends[3] or ""
        extensions = re.findall(r"\.\w+", listed)
        is_all = "&&" in code or " and lines" in code
        strings = [text for _, text in texts]
        found.append({"extensions": extensions, "lines": max(numbers), "all" if is_all else "any": strings})
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
