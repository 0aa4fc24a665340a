"""`starcoder complete`: infill at the cursor of a real file, or between a prefix and a suffix."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import TEXT, Section
from starcoder.cli.options import OutputOptions
from starcoder.cli.output import answer
from starcoder.cli.source import Cursor, checked, read_prompt, read_text
from starcoder.engine.settings import ModelSettings
from starcoder.errors import ConfigError, RequestError
from starcoder.prompts import split_marker
from starcoder.request import CompletionRequest


def run(
    target: Annotated[str | None, TEXT] = None,
    /,
    *,
    prefix: Annotated[str | None, TEXT] = None,
    suffix: Annotated[str | None, TEXT] = None,
    request: Annotated[CompletionRequest, Section("Prompt")] = CompletionRequest(),
    model: Annotated[ModelSettings, Section("Model")] = ModelSettings(),
    echo: Annotated[bool | None, Parameter(negative="--no-echo")] = None,
    output: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Infill at the cursor of a file, or between --prefix and --suffix.

    Without either, the text is read from stdin: it is filled in at <FILL_HERE>, or
    completed at its end.

    $ starcoder complete src/app.py:42:8
    $ starcoder complete -:42:8 < src/app.py
    $ starcoder complete --prefix "def add(a, b):" --suffix "    return c"

    Args:
        target: FILE:LINE:COL, counted from 1; the file - is stdin.
        prefix: Text before the cursor.
        suffix: Text after the cursor; without it the prefix is completed from left to right.
        echo: Print the prompt around the completion; by default on a terminal.
    """
    before, after = _around(target, prefix, suffix)
    if not before and not after:
        raise RequestError("the prompt is empty", "give code before or after the cursor")
    answer(replace(request, prefix=before, suffix=after), model, output, echo=echo)


def _around(target: str | None, prefix: str | None, suffix: str | None) -> tuple[str, str | None]:
    """The text before and after the cursor; after it is None to complete from left to right."""
    if target is not None:
        if prefix is not None or suffix is not None:
            raise ConfigError("both a file and --prefix or --suffix are given", "give one of the two")
        cursor = Cursor.parse(target)
        return cursor.split(read_text(cursor.file))
    if prefix is not None or suffix is not None:
        after = None if suffix is None else checked(suffix, "--suffix")
        return checked(prefix or "", "--prefix"), after
    return split_marker(read_prompt(None))
