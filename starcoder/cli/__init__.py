"""The command line: parses, wires the parts together, prints, turns errors into two lines and an exit code.

Each verb is a module with a `run` whose parameters are the settings classes of the layers (see `flags`).
Nothing here imports torch before a verb that needs it runs.
"""

import ast
import errno
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, UnknownOptionError
from cyclopts.config import Dict

from starcoder import __version__
from starcoder.cli import mistakes
from starcoder.cli.flags import with_flags
from starcoder.errors import ConfigError, StarcoderError

_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
VERBS = (
    *("generate", "complete", "chat", "serve", "lsp", "editor-config"),
    *("plan", "quantize", "bench", "evaluate", "export"),
    *("prepare", "finetune", "merge", "pretrain", "doctor", "attribution"),
)
_LAUNCHED = re.compile(r"--local[-_]rank=\d+")
_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Every failure the user can mend is two lines on stderr, `error:` and `hint:`. A reader of stdout that
    leaves early (`| head`) is no failure of ours: silence, and the exit code 141 that shells know.

    Raises:
        KeyboardInterrupt: the caller says what is to become of the process.
    """
    if sys.stdout is None or sys.stderr is None:
        return _without_streams()
    while arguments and _LAUNCHED.fullmatch(arguments[0]):  # torch.distributed.launch puts it first
        arguments = arguments[1:]
    for stream in (sys.stdout, sys.stderr):
        # Source code is UTF-8 whatever the locale says, and a CRLF file's lines stay CRLF.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")  # type: ignore[union-attr]
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except StarcoderError as error:
        hint = error.hint or f"`{_help_command(arguments)}` lists the options"
        sys.stderr.write(f"error: {_one_line(error.message)}\nhint: {_one_line(hint)}\n")
        return error.exit_code
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere instead of failing again.
        _forget_stdout()
        return _BROKEN_PIPE
    except OSError as error:
        name = f": '{error.filename}'" if error.filename is not None else ""
        sys.stderr.write(f"error: {_one_line(error.strerror or str(error))}{name}\nhint: {_remedy(error)}\n")
        _forget_stdout()
        return 1
    return 0


def _forget_stdout() -> None:
    """What could not be written is not tried again, as Python would at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _remedy(error: OSError) -> str:
    """What to do about an error of the operating system; numpy's writes have no number of it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and "written" in str(error)):
        return "make room on the disk, or write to another one; nothing was left half-written"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files, for example with `ulimit -n 4096`"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the permissions, or give a path that you may write to"
    return "check that the path exists and that its disk works"


def _without_streams() -> int:
    """A shell closed stdout or stderr (`>&-`)."""
    if sys.stderr is not None:
        sys.stderr.write("error: stdout is closed\nhint: send it to a file, or to /dev/null\n")
    return 1


def build(verbs: Sequence[str] = VERBS) -> App:
    """The verbs and how they are parsed."""
    app = App(
        name="starcoder",
        help="Run, serve, fine-tune and measure code completion models on your own machine.",
        version=__version__,
        config=(_refuse_unknown_options, _read_config),
        default_parameter=Parameter(negative=(), allow_repeating=True),
        help_format="plaintext",
    )
    for verb in verbs:
        module = import_module(f"starcoder.cli.{_module(verb)}")
        if hasattr(module, "SUBVERBS"):
            inner = App(name=verb, help=module.HELP)
            for run in module.SUBVERBS:
                inner.command(with_flags(run), name=run.__name__)
            app.command(inner)
        else:
            app.command(with_flags(module.run), name=verb)
    return app


def _dispatch(arguments: Sequence[str]) -> None:
    verb = arguments[0] if arguments else ""
    app = build([verb] if verb in VERBS else [])
    if verb not in VERBS:
        for name, summary in _summaries():
            app.command(App(name=name, help=summary))
    try:
        run, bound, _ = app.parse_args(_with_new_names(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise mistakes.explain(error) from None
    run(*bound.args, **bound.kwargs)


def _summaries() -> Iterator[tuple[str, str]]:
    """Each verb and what it does, read from its source: importing all verbs would take a second."""
    for verb in VERBS:
        tree = ast.parse(Path(__file__).with_name(f"{_module(verb)}.py").read_text("utf-8"))
        for node in tree.body:
            match node:
                case ast.FunctionDef(name="run"):
                    yield verb, (ast.get_docstring(node) or "").partition("\n")[0]
                case ast.Assign(targets=[ast.Name(id="HELP")], value=ast.Constant(value=str(summary))):
                    yield verb, summary


def _module(verb: str) -> str:
    return verb.replace("-", "_")


def _with_new_names(arguments: Sequence[str]) -> list[str]:
    """The arguments with a verb's former flags under their present names, without those that do nothing."""
    module = sys.modules.get(f"starcoder.cli.{_module(arguments[0])}") if arguments else None
    renamed, ignored = getattr(module, "OLD_NAMES", {}), getattr(module, "IGNORED", {})
    bare = getattr(module, "BARE", {})  # values of flags that were once given without any
    found, left = list[str](), list(arguments)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("_", "-") if flag.startswith("--") else ""
        if name in ignored:
            del left[: 0 if equals else ignored[name]]
        elif name in bare and not equals and (not left or left[0].startswith("--")):
            found.append(f"--{name}={bare[name]}")
        elif renamed.get(name) == "":  # a positional argument now
            found += [value] if equals else []
        else:
            found.append(f"--{renamed[name]}{equals}{value}" if name in renamed else word)
    return found


def _refuse_unknown_options(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """`-` and "-- a comment" are texts; what looks like an option and was not taken as one is a mistake."""
    for argument in arguments:
        for token in argument.tokens:
            if token.keyword is None and _OPTION.fullmatch(token.value):
                raise UnknownOptionError(token=token, argument_collection=arguments)


def _read_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what the command line left open from the TOML file named by `--config`."""
    for argument in arguments:
        if "--config" in argument.names and argument.tokens:
            path = argument.tokens[-1].value
            Dict(_read_toml(Path(path)), source=path, use_commands_as_keys=False)(app, commands, arguments)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read config {str(path)!r}: {error.strerror}", "--config takes the path of a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{str(path)!r} is not TOML: {error}", "a line is `name = value`, as in max_tokens = 64"
        ) from None
    for key, value in table.items():
        if isinstance(value, dict):
            raise ConfigError(
                f"config {str(path)!r} has a table [{key}]",
                "put options at the top of the file; one file is for one verb",
            )
    return table


def _help_command(arguments: Sequence[str]) -> str:
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    return " ".join(["starcoder", *([verb] if verb else []), "--help"])


def _one_line(text: str) -> str:
    return " ".join(text.split())
