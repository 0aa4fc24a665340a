"""The settings that make an editor use this server, ready to paste."""

from dataclasses import dataclass

# Placeholders are @url@, @model@ and @key@: braces belong to the formats themselves.


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
}


def settings(editor: str, *, url: str, model: str | None = None, key: str | None = None) -> str:
    """The text to paste. `editor` is one of `EDITORS`.

    `model` is the name of the model that the server runs; None is a name that every editor takes for the
    layout of infills that StarCoder and Starcoder2 share.
    """
    config = EDITORS[editor]
    text = config.text + (config.key if key else "")
    return (
        text.replace("@url@", url.rstrip("/"))
        .replace("@model@", model or "starcoder2")
        .replace("@key@", key or "")
    )
