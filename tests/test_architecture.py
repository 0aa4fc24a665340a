"""The package keeps its design: imports go down, starts are light, only `cli` touches the process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import starcoder

PACKAGE = Path(starcoder.__file__).parent

# From the top; a unit imports only from lines below its own. docs/architecture.md tells why.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"server"},
    {"engine", "train", "prepare", "evaluate", "lsp"},
    {"checkpoint"},
    {"model", "quantize", "adapters"},
    {"kernels", "tokenizer", "plan", "repos"},
    {"config", "request", "prompts", "chat"},
    {"files", "layouts"},
    {"errors"},
    {"__init__"},  # holds the version and looks the public names up by string, so it imports nothing
]
LIGHT = [
    "errors",
    "files",
    "layouts",
    "config",
    "request",
    "prompts",
    "plan",
    "repos",
    "prepare",
    "lsp",
    "cli",
]
HEAVY = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "safetensors"}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "bundled" not in path.parts)
UNITS = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}


def layer_of(unit: str) -> int:
    return next(line for line, units in enumerate(LAYERS) if unit in units)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree less its `if TYPE_CHECKING:` blocks: they never run, so they order nothing."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return None
            return self.generic_visit(node)

    return Remover().visit(tree)


def imported_units(path: Path) -> Iterator[tuple[int, str]]:
    """Line and unit of every import of this package in the file, those inside functions included."""
    for node in ast.walk(without_type_checking(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            module = node.module or ""
            names = [f"starcoder.{alias.name}" for alias in node.names] if module == "starcoder" else [module]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "starcoder":
                unit = rest.partition(".")[0] or "__init__"
                yield node.lineno, "__init__" if unit == "__version__" else unit


def test_every_module_has_its_line():
    assert {unit for unit in UNITS if not any(unit in units for units in LAYERS)} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upwards = [
        f"line {line}: {own} imports {unit}"
        for line, unit in imported_units(path)
        if unit != own and (unit not in UNITS or layer_of(unit) <= layer_of(own))
    ]
    assert upwards == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_cli_touches_the_process(path):
    unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    # worker.py is a process of its own; git.py starts one, in an environment that it scrubs.
    if unit in ("cli", "__main__") or path.name in ("worker.py", "git.py"):
        return
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id="print" | "input" | "exit" | "quit" as name)):
                found.append(f"line {node.lineno}: {name}()")
            case ast.Attribute(value=ast.Name(id="sys"), attr="argv" | "exit" | "stdout" | "stderr" as name):
                found.append(f"line {node.lineno}: sys.{name}")
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "_exit" as name):
                found.append(f"line {node.lineno}: os.{name}")
            case ast.Import(names=names) if any(alias.name in ("argparse", "cyclopts") for alias in names):
                found.append(f"line {node.lineno}: parses arguments")
    assert found == []


def importing(module: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that imports `module` and prints what its script asks for."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys, {module}\n{then}"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unit", [None, *(unit for unit in LIGHT if unit in UNITS)])
def test_light_modules_start_without_torch(unit):
    module = "starcoder" if unit is None else f"starcoder.{unit}"
    done = importing(module, f"print(sorted({HEAVY!r} & sys.modules.keys()))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_running_a_model_needs_no_transformers():
    loads = "; ".join(
        f"import starcoder.{unit}" for unit in sorted(UNITS - {"__main__", "__init__", "train"})
    )
    done = importing("starcoder", f"{loads}\nprint('transformers' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_importing_every_module_has_no_effects(tmp_path):
    """No file written, nothing printed, no warning, no logging configured, no thread left running."""
    modules = [
        ".".join(["starcoder", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in FILES
    ]
    script = "\n".join(
        [
            "import logging, os, threading, warnings",
            "before = dict(os.environ)",
            *(f"import {module}" for module in modules),
            "assert logging.getLogger().handlers == [], 'configures logging'",
            "assert logging.getLogger('starcoder').handlers == [], 'configures logging'",
            "assert threading.active_count() == 1, threading.enumerate()",
            "changed = {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)}",
            "assert not {k for k in changed if 'STARCODER' in k or 'TOKENIZERS' in k or 'HF_' in k}, changed",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(PACKAGE.parent),
            "PATH": "",
            "HOME": str(tmp_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_public_names_are_sorted_and_resolve():
    assert starcoder.__all__ == sorted(starcoder.__all__)
    for name in starcoder.__all__:
        assert getattr(starcoder, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = starcoder.nonesuch


def test_public_names_are_the_ones_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(starcoder.__all__)


def test_every_module_opens_with_its_job():
    silent = [
        str(p)
        for p in FILES
        if p.read_text("utf-8").strip() and not ast.get_docstring(ast.parse(p.read_text("utf-8")))
    ]
    assert silent == []
