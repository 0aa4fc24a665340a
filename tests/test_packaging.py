"""What users are told to install is this project: one name, and extras that exist."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import starcoder
from starcoder.errors import DISTRIBUTION, ConfigError, MissingExtraError

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALL = re.compile(r"pip install (?:-\S+ )*['\"]?(starcoder[\w.-]*)(?:\[([\w,]+)\])?")
SOURCES = [
    path
    for pattern in (
        "*.md", "*.toml", "Makefile", "docs/**/*.md", "starcoder/**/*.py", "tests/**/*.py", "benchmarks/*.py"
    )
    for path in sorted(ROOT.glob(pattern))
]  # fmt: skip


def test_hints_and_the_metadata_have_one_name():
    assert PROJECT["name"] == DISTRIBUTION
    try:
        installed = metadata.packages_distributions()["starcoder"]
    except KeyError:
        pytest.skip("the package runs from its source tree; no metadata is installed")
    assert set(installed) == {DISTRIBUTION}
    assert metadata.version(DISTRIBUTION) == starcoder.__version__


def test_whatever_names_the_distribution_names_this_one():
    wrong = []
    for path in SOURCES:
        text = path.read_text("utf-8")
        names = {name for name, _ in INSTALL.findall(text)}
        for name, extras in re.findall(r"(?<![\w-])(starcoder[\w-]*)\[([a-z]+(?:,[a-z]+)*)\]", text):
            names.add(name)
            wrong += [f"{path}: [{extra}]" for extra in extras.split(",") if extra not in EXTRAS]
        wrong += [f"{path}: {name}" for name in names - {DISTRIBUTION}]
    assert len(SOURCES) > 100 and wrong == []


def test_extras_that_code_asks_for_exist():
    asked = {
        extra
        for path in (ROOT / "starcoder").rglob("*.py")
        for extra in re.findall(r'MissingExtraError\(\s*f?"[^"]*",\s*"(\w+)"', path.read_text("utf-8"))
    }
    assert len(asked) >= 5 and asked <= set(EXTRAS)


def test_a_missing_extra_is_a_users_error_with_the_command():
    error = MissingExtraError("the server needs fastapi", "serve")
    assert isinstance(error, ConfigError)
    assert error.hint == f"pip install '{DISTRIBUTION}[serve]'"


def test_every_data_file_of_the_package_is_in_the_wheel():
    """What modules read at run time is in `package-data`, or an installed package lacks it."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    patterns = setuptools["package-data"]["starcoder"]
    package = ROOT / "starcoder"
    ignored = {".py", ".pyc", ".so", ".cpp", ".h", ".inl"}
    data = [path for path in package.rglob("*") if path.is_file() and path.suffix not in ignored]
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    assert len(data) >= 8 and {*data} - packaged == set()


def test_classifiers_name_what_is_built_and_tested():
    classifiers = PROJECT["classifiers"]
    assert not any("OS Independent" in one for one in classifiers)
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert versions == re.findall(r'"(3\.\d+)"', workflow)
    assert re.search(r"ubuntu-24.04, ubuntu-24.04-arm, macos-14", workflow)
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {starcoder.__version__}\n" in citation
