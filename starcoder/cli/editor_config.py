"""`starcoder editor-config`: the settings that make an editor use our server."""

import sys
from typing import Literal

from starcoder.server.editors import EDITORS, settings


def run(
    editor: Literal["zed", "continue", "llm-vscode", "llama.vim", "tabby", "neovim"],
    /,
    *,
    url: str = "http://127.0.0.1:8080",
    model: str = "starcoder2",
    key: str | None = None,
) -> None:
    """Print the settings of an editor, to paste; where they go is said on stderr.

    $ starcoder editor-config zed
    $ starcoder editor-config continue --url http://gpu-box:8080 --key secret

    Args:
        editor: zed, continue, llm-vscode, llama.vim, tabby or neovim.
        url: Where the server is.
        model: Name of the model; editors choose the prompt's format by it.
        key: API key, if the server wants one.
    """
    print(f"into {EDITORS[editor].place}:", file=sys.stderr)
    print(settings(editor, url=url, model=model, key=key), end="")
