"""`starcoder editor-config`: the settings that make an editor use our server."""

import sys
from typing import Literal

from starcoder.server.editors import EDITORS, settings


def run(
    editor: Literal["zed", "continue", "llm-vscode", "llama.vim", "tabby", "neovim"],
    /,
    *,
    url: str = "http://127.0.0.1:8080",
    model: str | None = None,
    key: str | None = None,
) -> None:
    """Print the settings that make an editor use this server; stderr says where to paste them.

    $ starcoder editor-config zed
    $ starcoder editor-config continue --url http://gpu-box:8080 --key secret

    Args:
        editor: zed, continue, llm-vscode, llama.vim, tabby or neovim.
        url: Address of the server.
        model: Name of the model, by which some editors choose the layout of infills; starcoder2 by default.
        key: API key, if the server requires one.
    """
    print(f"paste into {EDITORS[editor].place}:", file=sys.stderr)
    print(settings(editor, url=url, model=model, key=key), end="")
