"""`starcoder complete`: infill at the cursor of a real file, or between a prefix and a suffix."""

from typing import Annotated

from starcoder.cli.options import TEXT, AskOptions
from starcoder.cli.output import answer
from starcoder.cli.source import Cursor, checked, read_prompt, read_text
from starcoder.errors import ConfigError, RequestError
from starcoder.prompts import split_marker
from starcoder.request import CompletionRequest


def run(
    target: Annotated[str | None, TEXT] = None,
    /,
    *,
    prefix: Annotated[str | None, TEXT] = None,
    suffix: Annotated[str | None, TEXT] = None,
    options: AskOptions = AskOptions(),
) -> None:
    """Infill at the cursor of a file, or between --prefix and --suffix.

    Without either, stdin is the text: marked with <FILL_HERE>, or completed at
    its end.

    $ starcoder complete src/app.py:42:8
    $ starcoder complete -:42:8 < src/app.py
    $ starcoder complete --prefix "def add(a, b):" --suffix "    return c"

    Args:
        target: FILE:LINE:COL, counted from 1; the file - is stdin.
        prefix: Text before the cursor.
        suffix: Text after the cursor; without it the prefix is completed left to right.
    """
    after: str | None
    if target is not None:
        if prefix is not None or suffix is not None:
            raise ConfigError("both a file and --prefix or --suffix are given", "give one of the two")
        cursor = Cursor.parse(target)
        before, after = cursor.split(read_text(cursor.file))
    elif prefix is not None or suffix is not None:
        before = checked(prefix or "", "--prefix")
        after = None if suffix is None else checked(suffix, "--suffix")
    else:
        before, after = split_marker(read_prompt(None))
    if not before and not after:
        raise RequestError(
            "there is no text around the cursor", "the model goes on with some code; give it some"
        )
    request = CompletionRequest(
        prefix=before, suffix=after, layout=options.sampling.layout, sampling=options.sampling.params()
    )
    answer(request, options)
