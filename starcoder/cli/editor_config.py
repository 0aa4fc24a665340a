"""`starcoder editor-config`: the settings that make an editor use our server."""

import sys
from typing import Literal

from starcoder.lsp.editors import EDITORS, settings

Editor = Literal[
    "neovim",
    "helix",
    "emacs",
    "jetbrains",
    "kate",
    "sublime",
    "zed",
    "continue",
    "llm-vscode",
    "llama.vim",
    "tabby",
    "llm.nvim",
]


def run(
    editor: Editor,
    /,
    *,
    url: str | None = None,
    model: str | None = None,
    key: str | None = None,
) -> None:
    """Print the settings that make an editor use StarCoder; stderr says where to paste them.

    neovim, helix, emacs, jetbrains, kate and sublime use `starcoder lsp`; zed,
    continue, llm-vscode, llama.vim, tabby and llm.nvim use `starcoder serve`.

    $ starcoder editor-config neovim
    $ starcoder editor-config continue --url http://gpu-box:8080 --key secret

    Args:
        editor: neovim, helix, emacs, jetbrains, kate, sublime, zed, continue, llm-vscode, llama.vim, tabby
            or llm.nvim.
        url: Address of the server; one on this machine by default.
        model: Name of the model, by which some editors choose the layout of infills; starcoder2 by default.
        key: API key, if the server requires one.
    """
    print(f"paste into {EDITORS[editor].place}:", file=sys.stderr)
    print(settings(editor, url=url, model=model, key=key), end="")
