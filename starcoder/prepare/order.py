"""Orders the files of a repository so that what is imported comes before what imports it.

Imports of Python, JavaScript and TypeScript, Java, Go, Rust, C and C++ are read with regular expressions,
not parsed: one in a string counts too. Cycles are cut at the file whose path comes first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, join, normpath

_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(?:\(([^)]*)|([^\n]*))|import[ \t]+([\w., \t]+))", re.M
)
_SCRIPT = re.compile(r"(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*)[\"'](\.[^\"'\n]*)[\"']")
_JAVA = re.compile(r"^\s*import\s+(?:static\s+)?([\w.]+)\s*;", re.M)
_GO = re.compile(r"^\s*import\s*(?:\(([^)]*)\)|(?:[\w.]+\s+)?(\"[^\"\n]+\"))", re.M)
_QUOTED = re.compile(r"\"([^\"\n]+)\"")
_RUST = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?(mod|use)\s+([\w:]+)", re.M)
_C = re.compile(r"^\s*#\s*include\s+\"([^\"\n]+)\"", re.M)
_SCRIPT_ENDINGS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.tsx", "/index.js")


@dataclass(frozen=True, slots=True)
class File:
    """What ordering knows of a file."""

    path: str
    imports: tuple[str, ...]


def imports_of(language: str, content: str) -> tuple[str, ...]:
    """What a file imports, as paths to find it at: `./` from its folder, `dir:` a folder, else any end."""
    find = _FINDERS.get(language)
    return tuple(dict.fromkeys(find(content))) if find else ()


def by_dependency(files: Sequence[File]) -> list[int]:
    """The files' numbers: imported ones first, else in order of path."""
    index = _Index(files)
    needs = [index.needed_by(number) for number in range(len(files))]
    by_path = sorted(range(len(files)), key=lambda number: files[number].path)
    order: list[int] = []
    state = [0] * len(files)  # 1: being placed, 2: placed
    for start in by_path:
        stack = [(start, iter(needs[start]))] if not state[start] else []
        state[start] = max(state[start], 1)
        while stack:
            number, rest = stack[-1]
            following = next((other for other in rest if not state[other]), None)
            if following is None:
                state[number] = 2
                order.append(number)
                stack.pop()
            else:
                state[following] = 1
                stack.append((following, iter(needs[following])))
    return order


class _Index:
    """Finds files by the end of their path."""

    def __init__(self, files: Sequence[File]):
        self._files = files
        self._numbers = {file.path: number for number, file in enumerate(files)}
        self._by_name: dict[str, list[str]] = {}
        self._by_folder: dict[str, list[str]] = {}
        for path in sorted(self._numbers):
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)
            self._by_folder.setdefault(dirname(path), []).append(path)
        self._folders: dict[str, list[str]] = {}
        for folder in self._by_folder:
            self._folders.setdefault(folder.rpartition("/")[2], []).append(folder)

    def needed_by(self, number: int) -> list[int]:
        """Files that this one imports, in order of path."""
        path = self._files[number].path
        found = {self._numbers[p] for target in self._files[number].imports for p in self._find(path, target)}
        return sorted(found - {number}, key=lambda other: self._files[other].path)

    def _find(self, path: str, target: str) -> list[str]:
        if target.startswith("dir:"):
            return self._in_folder(target.removeprefix("dir:"))
        if target.startswith("."):
            exact = normpath(join(dirname(path), target))
            return [exact] if exact in self._numbers else []
        beside = normpath(join(dirname(path), target))
        if beside in self._numbers:
            return [beside]
        ending = f"/{target}"
        same = self._by_name.get(target.rpartition("/")[2], ())
        hits = [p for p in same if p == target or p.endswith(ending)]
        return sorted(hits, key=len)[:1]

    def _in_folder(self, package: str) -> list[str]:
        parts = package.split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for folder in self._folders.get(parts[-1], ()):
                if folder == tail or folder.endswith(f"/{tail}"):
                    return [p for p in self._by_folder[folder] if p.endswith(".go")]
        return []


def _python(content: str) -> list[str]:
    found = []
    for module, in_brackets, on_line, plain in _PYTHON.findall(content):
        for one in (part.split()[0] for part in plain.split(",") if part.split()):
            found += [f"{one.replace('.', '/')}.py", f"{one.replace('.', '/')}/__init__.py"]
        if module:
            dots = len(module) - len(module.lstrip("."))
            base = module.lstrip(".").replace(".", "/")
            base = "./" + "../" * (dots - 1) + base if dots else base
            names = (part.split() for part in (in_brackets or on_line).split(","))
            inside = [words[0] for words in names if words and words[0].isidentifier()]
            found += [f"{base.rstrip('/')}/{name}.py" for name in inside]
            found += [f"{base}.py"] if base.strip("./") else []
            found += [f"{base.rstrip('/')}/__init__.py"]
    return found


def _script(content: str) -> list[str]:
    return [f"./{target}{ending}" for target in _SCRIPT.findall(content) for ending in _SCRIPT_ENDINGS]


def _java(content: str) -> list[str]:
    return [f"{name.replace('.', '/')}.java" for name in _JAVA.findall(content)]


def _go(content: str) -> list[str]:
    blocks = [block or single for block, single in _GO.findall(content)]
    return [f"dir:{path}" for block in blocks for path in _QUOTED.findall(block)]


def _rust(content: str) -> list[str]:
    found = []
    for word, name in _RUST.findall(content):
        parts = [part for part in name.split("::") if part not in ("crate", "self", "super", "")]
        if word == "mod" and parts:
            found += [f"./{parts[0]}.rs", f"./{parts[0]}/mod.rs"]
        elif name.startswith(("crate", "self", "super")):
            for end in range(len(parts), 0, -1):
                base = "/".join(parts[:end])
                found += [f"{base}.rs", f"{base}/mod.rs"]
    return found


def _c(content: str) -> list[str]:
    return [str(name) for name in _C.findall(content)]


_FINDERS: Mapping[str, Callable[[str], list[str]]] = {
    "Python": _python,
    "JavaScript": _script,
    "TypeScript": _script,
    "Java": _java,
    "Go": _go,
    "Rust": _rust,
    "C": _c,
    "C++": _c,
    "Cuda": _c,
}
