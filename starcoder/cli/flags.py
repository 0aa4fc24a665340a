"""Turns a verb that takes settings dataclasses into one that takes flags.

Every field with a docstring below it is a flag: name, type, default and help come from the class that owns
them, so the command line repeats none. A field without a docstring, or with a comment only, is for callers
in Python. A field that is a dataclass itself is expanded in place, under its docstring as the heading. Where
a field's name says too little among others, `field(metadata={"flag": "fim_rate"})` names the flag.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

_SHORT = {"index": "-i", "model": "-m", "output": "-o", "verbose": "-v"}
_ANY_TEXT = ("stop",)  # values that may begin with hyphens

TEXT = Parameter(allow_leading_hyphen=True, show_default=False)
"""For a verb's own parameters that may be any text, such as "-", "-- a comment" or "->"."""


@dataclass(frozen=True, slots=True)
class Section:
    """The heading of a settings class in `--help`, as in `Annotated[ServerSettings, Section("Server")]`."""

    title: str
    without: tuple[str, ...] = ()  # fields that this verb decides itself


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    path: tuple[str, ...]  # the verb's parameter, then fields down to the value
    title: str
    annotation: Any
    default: object
    help: str

    def parameter(self, group: Group) -> inspect.Parameter:
        is_shown = self.default is not False and self.default not in ((), frozenset(), None, "")
        spec = Parameter(
            name=["--" + self.name.replace("_", "-"), *filter(None, [_SHORT.get(self.name)])],
            group=group,
            help=self.help,
            show_default=None if is_shown else False,
            negative=_negative(self.name, self.annotation, self.default),
            allow_leading_hyphen=self.name in _ANY_TEXT,
        )
        default = inspect.Parameter.empty if self.default is MISSING else self.default
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(
            self.name, kind, default=default, annotation=Annotated[self.annotation, spec]
        )


def with_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with a flag for each documented field of its parameters of the form Annotated[Class, Section].

    The settings are made from the flags that were given, so that each class checks its own values.
    """
    hints = get_type_hints(verb, include_extras=True)
    parameters, flags = [], list[_Flag]()
    settings: dict[str, tuple[type, object]] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, section = _settings_class(hints.get(name))
        if kind is None or section is None:
            parameters.append(parameter.replace(annotation=hints.get(name, parameter.annotation)))
            continue
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        settings[name] = kind, default
        flags += _flags(kind, default, (name,), section)
    if not settings:
        return verb
    groups = {
        title: Group(title, sort_key=at) for at, title in enumerate(dict.fromkeys(f.title for f in flags))
    }
    taken = [flag.name for flag in flags]
    assert len(taken) == len({*taken}), f"flags of {verb.__module__} that clash: {sorted(taken)}"

    def run(*arguments: object, **given: object) -> None:
        values = {flag.path: given.pop(flag.name) for flag in flags if flag.name in given}
        made = {name: _made(kind, base, (name,), values) for name, (kind, base) in settings.items()}
        verb(*arguments, **given, **made)

    run.__doc__ = verb.__doc__
    run.__annotations__ = {}
    parameters += [flag.parameter(groups[flag.title]) for flag in flags]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def field_help(settings: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, inherited ones included, by field."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if not is_dataclass(kind):
            continue
        [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _settings_class(hint: Any) -> tuple[type | None, Section | None]:
    section = None
    if get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        section = next((item for item in extra if isinstance(item, Section)), None)
    return (hint, section) if isinstance(hint, type) and is_dataclass(hint) else (None, None)


def _flags(kind: type, base: object, path: tuple[str, ...], section: Section) -> Iterator[_Flag]:
    """The flags of a settings class, those of nested classes after its own."""
    help_of, hints = field_help(kind), get_type_hints(kind, include_extras=True)
    nested = []
    for field in fields(kind):
        if field.name not in help_of or field.name in section.without:
            continue
        default = _default(field, base)
        inner, _ = _settings_class(hints[field.name])
        if inner is not None:
            title = Section(help_of[field.name].rstrip("."), section.without)
            nested.append(_flags(inner, default, (*path, field.name), title))
        else:
            name = field.metadata.get("flag", field.name)
            help_text = help_of[field.name]
            yield _Flag(name, (*path, field.name), section.title, hints[field.name], default, help_text)
    for flags in nested:
        yield from flags


def _default(field: Any, base: object) -> object:
    if base is not None:
        return getattr(base, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _made(
    kind: type, base: object, path: tuple[str, ...], values: Mapping[tuple[str, ...], object]
) -> object:
    """An instance with what was given; all else is as in `base`, or the class's own default."""
    chosen = {} if base is None else {field.name: getattr(base, field.name) for field in fields(kind)}
    hints = get_type_hints(kind)
    for field in fields(kind):
        here = (*path, field.name)
        if here in values:
            chosen[field.name] = values[here]
        elif any(other[: len(here)] == here for other in values):
            default = _default(field, base)
            chosen[field.name] = _made(
                hints[field.name], None if default is MISSING else default, here, values
            )
    return kind(**chosen)


def _negative(name: str, annotation: Any, default: object) -> tuple[str, ...]:
    """`--no-name` for switches that are on, or that have three states."""
    is_switch = annotation is bool or set(get_args(annotation)) == {bool, type(None)}
    return (f"--no-{name.replace('_', '-')}",) if is_switch and default is not False else ()
