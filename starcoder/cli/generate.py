"""`starcoder generate`: complete a prompt, or fill in the marked position in it."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import TEXT, Section
from starcoder.cli.options import OutputOptions
from starcoder.cli.output import answer
from starcoder.cli.source import read_prompt
from starcoder.engine.settings import ModelSettings
from starcoder.prompts import split_marker
from starcoder.request import CompletionRequest


def run(
    prompt: Annotated[str | None, TEXT] = None,
    /,
    *,
    request: Annotated[CompletionRequest, Section("Prompt")] = CompletionRequest(),
    model: Annotated[ModelSettings, Section("Model")] = ModelSettings(),
    echo: Annotated[bool | None, Parameter(negative="--no-echo")] = None,
    output: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Complete a prompt from left to right, or fill in the text marked <FILL_HERE>.

    Text appears as it is generated. On a terminal the prompt is printed with it,
    dimmed; a pipe gets the completion alone.

    $ starcoder generate "def fibonacci(n):"
    $ starcoder generate "def add(a, b):<FILL_HERE>    return c"
    $ cat src/app.py | starcoder generate - --max-tokens 32 --json

    Args:
        prompt: Code to continue; - or no prompt reads it from stdin.
        echo: Print the prompt around the completion; by default on a terminal.
    """
    prefix, suffix = split_marker(read_prompt(prompt))
    answer(replace(request, prefix=prefix, suffix=suffix), model, output, echo=echo)
