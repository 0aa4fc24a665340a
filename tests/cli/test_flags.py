"""The command line offers the settings of the layers, and repeats none of their defaults."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from cyclopts import App

import starcoder
from starcoder.cli import VERBS, build, main
from starcoder.cli.flags import Section, field_help, with_flags
from starcoder.errors import ConfigError

PACKAGE = Path(starcoder.__file__).parent
OTHER_MEANING = {("quantize.py", "method")}  # how scales are found, not how a model is trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.5
    """Share of
    something."""
    hidden: int = 1  # for callers in Python


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    output: str
    """Where it goes."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    is_on: bool = True
    """A switch that is on."""
    names: tuple[str, ...] = ()
    """Several."""
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25, hidden=7))
    """Inner part."""
    internal: int = 3

    def __post_init__(self) -> None:
        if self.kind == "b" and not self.is_on:
            raise ConfigError("kind b needs the switch")


def parsed(line: str, verb: Callable[[list[object]], Callable[..., None]]) -> object:
    """What a verb receives as `settings`."""
    received: list[object] = []
    app = App()
    app.command(with_flags(verb(received)), name="verb")
    run, bound, _ = app.parse_args(["verb", *line.split()], print_error=False, exit_on_error=False)
    run(*bound.args, **bound.kwargs)
    return received[0]


def plain(received: list[object]) -> Callable[..., None]:
    def verb(*, settings: Annotated[Outer, Section("Outer")]) -> None:
        received.append(settings)

    return verb


def with_instance(received: list[object]) -> Callable[..., None]:
    own = Outer(output="here", kind="b", internal=9)

    def verb(*, settings: Annotated[Outer, Section("Outer", without=("kind",))] = own) -> None:
        received.append(settings)

    return verb


def test_documented_fields_are_flags_and_others_keep_their_values():
    assert parsed("--output x", plain) == Outer(output="x")
    given = parsed("--output x --kind b --names p --names q --rate 0.75", plain)
    assert given == Outer(output="x", kind="b", names=("p", "q"), inner=Inner(rate=0.75, hidden=7))
    assert parsed("--output x --no-is-on", plain) == Outer(output="x", is_on=False)


def test_a_verbs_own_instance_is_the_default():
    assert parsed("--names p", with_instance) == Outer(output="here", kind="b", internal=9, names=("p",))


def test_the_class_checks_what_the_command_line_gave():
    with pytest.raises(ConfigError, match="kind b needs the switch"):
        parsed("--output x --kind b --no-is-on", plain)


def test_help_is_the_docstring_below_the_field():
    assert field_help(Inner) == {"rate": "Share of something."}


def settings_fields() -> dict[str, set[str]]:
    """Names of documented fields with a default of the layers' settings classes, by class."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if {"cli", "bundled"} & set(path.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Settings", "Recipe", "Params")):
                pairs = zip(node.body, node.body[1:], strict=False)
                found[f"{path.name}:{node.name}"] = {
                    one.target.id
                    for one, below in pairs
                    if isinstance(one, ast.AnnAssign) and one.value is not None
                    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                }
    return found


def defaults(path: Path) -> list[tuple[int, str]]:
    """Line and name of every parameter and field of a file that has a constant other than None as default."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        pairs: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args.posonlyargs + node.args.args
            pairs += zip([a.arg for a in arguments[::-1]], node.args.defaults[::-1], strict=False)
            pairs += zip([a.arg for a in node.args.kwonlyargs], node.args.kw_defaults, strict=True)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pairs.append((node.target.id, node.value))
        found += [
            (node.lineno, name)
            for name, value in pairs
            if isinstance(value, ast.Constant | ast.Tuple) and getattr(value, "value", 0) is not None
        ]
    return found


def test_no_default_of_a_settings_class_is_repeated():
    owners = settings_fields()
    assert sum(map(len, owners.values())) > 30
    repeated = [
        f"{path.name}:{line}: {name} of {owner}"
        for path in sorted((PACKAGE / "cli").glob("*.py"))
        for line, name in defaults(path)
        for owner, names in owners.items()
        if name in names and (path.name, name) not in OTHER_MEANING
    ]
    assert repeated == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_help_and_every_verb_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    if verb != "attribution":
        assert f"$ starcoder {verb}" in shown
    app = build([verb])[verb]
    for command in [app[name] for name in ("build", "find")] if verb == "attribution" else [app]:
        undocumented = [
            argument.name
            for argument in command.assemble_argument_collection(parse_docstring=True)
            if not argument.parameter.help and argument.show
        ]
        assert undocumented == []
