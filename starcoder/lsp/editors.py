"""The settings that make an editor use this server, ready to paste."""

import json
import shlex
from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8080"

# Placeholders are words between @: braces belong to the formats themselves.


@dataclass(frozen=True, slots=True)
class EditorConfig:
    """Where the text goes, and the text."""

    place: str
    text: str
    key: str = ""  # how the text goes on where the server wants an API key


EDITORS = {
    "zed": EditorConfig(
        "~/.config/zed/settings.json, merged into the outer braces; a key goes into the environment variable "
        "OPEN_AI_COMPATIBLE_API_KEY or the settings page of edit prediction",
        """{
  "edit_predictions": {
    "provider": "open_ai_compatible_api",
    "open_ai_compatible_api": {
      "api_url": "@url@/v1/completions",
      "model": "@model@",
      "prompt_format": "infer",
      "max_output_tokens": 64
    }
  }
}
""",
    ),
    "continue": EditorConfig(
        "~/.continue/config.yaml",
        """name: starcoder
version: 0.0.1
schema: v1
models:
  - name: starcoder
    provider: openai
    model: @model@
    apiBase: @url@/v1
    useLegacyCompletionsEndpoint: true
    roles:
      - autocomplete
""",
        key="    apiKey: @key@\n",
    ),
    "llm-vscode": EditorConfig(
        "settings.json of VS Code; a key goes into the command `LLM: Login`",
        """{
  "llm.backend": "tgi",
  "llm.url": "@url@",
  "llm.modelId": "@model@",
  "llm.configTemplate": "Custom",
  "llm.requestBody": { "parameters": { "max_new_tokens": 60, "temperature": 0 } },
  "llm.fillInTheMiddle.enabled": true,
  "llm.fillInTheMiddle.prefix": "<fim_prefix>",
  "llm.fillInTheMiddle.middle": "<fim_middle>",
  "llm.fillInTheMiddle.suffix": "<fim_suffix>",
  "llm.tokenizer": null
}
""",
    ),
    "llama.vim": EditorConfig(
        "~/.vimrc or init.vim, before the plugin loads",
        """let g:llama_config = { 'endpoint_fim': '@url@/infill' }
""",
        key="let g:llama_config.api_key = '@key@'\n",
    ),
    "tabby": EditorConfig(
        "~/.tabby-client/agent/config.toml",
        """[server]
endpoint = "@url@"
""",
        key='token = "@key@"\n',
    ),
    "neovim": EditorConfig(
        "init.lua of Neovim 0.12 or later; no plugin is needed",
        """vim.lsp.config("starcoder", { cmd = { @command@ } })
vim.lsp.enable("starcoder")
vim.lsp.inline_completion.enable()
vim.keymap.set("i", "<Tab>", function()
  if not vim.lsp.inline_completion.get() then
    return "<Tab>"
  end
end, { expr = true, desc = "Accept the completion" })
""",
    ),
    "llm.nvim": EditorConfig(
        "init.lua, for the plugin huggingface/llm.nvim; a key goes into LLM_NVIM_HF_API_TOKEN",
        """require("llm").setup({
  backend = "tgi",
  model = "@model@",
  url = "@url@",
  request_body = { parameters = { max_new_tokens = 60, temperature = 0 } },
  fim = {
    enabled = true,
    prefix = "<fim_prefix>",
    middle = "<fim_middle>",
    suffix = "<fim_suffix>",
  },
})
""",
    ),
    "helix": EditorConfig(
        "~/.config/helix/languages.toml; one `[[language]]` for each language",
        """[language-server.starcoder]
command = "starcoder"
args = ["lsp", "--completion"@arguments@]

[[language]]
name = "python"
language-servers = ["starcoder"]
""",
    ),
    "emacs": EditorConfig(
        "init.el, for lsp-mode 10 or later",
        """(with-eval-after-load 'lsp-mode
  (lsp-register-client
   (make-lsp-client :new-connection (lsp-stdio-connection '(@emacs@))
                    :activation-fn (lambda (&rest _) (derived-mode-p 'prog-mode))
                    :add-on? t
                    :server-id 'starcoder)))
(add-hook 'lsp-mode-hook #'lsp-inline-completion-mode)
""",
    ),
    "jetbrains": EditorConfig(
        "Settings > Languages & Frameworks > Language Servers, of the plugin LSP4IJ: the command of a new "
        "server",
        """@shell@
""",
    ),
    "kate": EditorConfig(
        "Settings > LSP Client > User Server Settings",
        """{
  "servers": {
    "python": {
      "command": [@completion@],
      "highlightingModeRegex": "^Python$"
    }
  }
}
""",
    ),
    "sublime": EditorConfig(
        "Preferences > Package Settings > LSP > Settings, for the package LSP",
        """{
  "clients": {
    "starcoder": {
      "enabled": true,
      "command": [@completion@],
      "selector": "source"
    }
  }
}
""",
    ),
}


def settings(editor: str, *, url: str | None = None, model: str | None = None, key: str | None = None) -> str:
    """The text to paste. `editor` is one of `EDITORS`.

    `url` None is a server on this machine: port 8080 for editors that speak to it themselves, any server or
    a new one for those that use the language server. `model` is the name of the model that the server runs;
    None is a name that every editor takes for the layout of infills that StarCoder and Starcoder2 share.
    """
    config = EDITORS[editor]
    url = url and url.rstrip("/")
    flags = [*(["--url", url] if url else []), *(["--api-key", key] if key else [])]
    quoted = {
        "command": ["starcoder", "lsp", *flags],
        "completion": ["starcoder", "lsp", "--completion", *flags],
    }
    text = config.text + (config.key if key else "")
    for name, words in quoted.items():
        text = text.replace(f"@{name}@", ", ".join(map(json.dumps, words)))
    return (
        text.replace("@arguments@", "".join(f", {json.dumps(word)}" for word in flags))
        .replace("@emacs@", " ".join(map(json.dumps, quoted["command"])))
        .replace("@shell@", shlex.join(quoted["command"]))
        .replace("@url@", url or DEFAULT_URL)
        .replace("@model@", model or "starcoder2")
        .replace("@key@", key or "")
    )
