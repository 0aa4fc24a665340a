"""`starcoder generate`: complete a prompt, or fill the place that a marker in it shows."""

from typing import Annotated

from starcoder.cli.options import TEXT, AskOptions
from starcoder.cli.output import answer
from starcoder.cli.source import read_prompt
from starcoder.prompts import split_marker
from starcoder.request import CompletionRequest


def run(prompt: Annotated[str | None, TEXT] = None, /, *, options: AskOptions = AskOptions()) -> None:
    """Complete a prompt, left to right, or fill the place marked <FILL_HERE> in it.

    Text appears as it is made. On a terminal the prompt is shown with it,
    dimmed; a pipe gets the completion alone.

    $ starcoder generate "def fibonacci(n):"
    $ starcoder generate "def add(a, b):<FILL_HERE>    return c"
    $ cat src/app.py | starcoder generate - --max-tokens 32 --json

    Args:
        prompt: The code to go on with; - or nothing reads it from stdin.
    """
    prefix, suffix = split_marker(read_prompt(prompt))
    request = CompletionRequest(
        prefix=prefix, suffix=suffix, layout=options.sampling.layout, sampling=options.sampling.params()
    )
    answer(request, options)
