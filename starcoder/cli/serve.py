"""`starcoder serve`: the model behind HTTP, for every editor and client that already exists."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from starcoder.cli import options
from starcoder.cli.flags import Section
from starcoder.engine.settings import EngineSettings, ModelSettings
from starcoder.errors import MissingExtraError
from starcoder.server.settings import ServerSettings, read_keys


def run(
    *,
    server: Annotated[ServerSettings, Section("Server")] = ServerSettings(),
    api_key_file: Path | None = None,
    chat_template: str | None = None,
    attribution: Path | None = None,
    model: Annotated[ModelSettings, Section("Model")] = ModelSettings(),
    engine: Annotated[EngineSettings, Section("Engine", without=("max_queue",))] = EngineSettings(
        prepare=True
    ),
    output: Annotated[options.OutputOptions, Section("Output", without=("json",))] = options.OutputOptions(),
) -> None:
    """Serve completions over HTTP, in the dialects of OpenAI, TGI, llama.cpp, Ollama and Tabby.

    The OpenAPI description is at /docs, metrics are at /metrics. A first Ctrl-C
    lets running requests finish, a second one does not.

    $ starcoder serve
    $ starcoder serve --model bigcode/starcoder2-3b --api-key-file keys.txt

    Args:
        api_key_file: Keys that clients must send: one a line, optionally with its requests per minute.
        chat_template: no_system, default, alpaca or a Jinja file; the checkpoint's own by default.
        attribution: Index of `attribution build`, for /overlap and the `attribution` field of requests.
    """
    import signal
    import sys

    try:
        from starcoder.server import serving
    except ImportError as error:
        raise MissingExtraError(f"the server needs {error.name}, which is not installed", "serve") from None
    from starcoder import checkpoint
    from starcoder.prepare.attribution import Index

    output.start_logging()
    loaded = options.load(model, replace(engine, max_queue=server.max_queue + engine.max_sequences))
    running = serving.Server(
        loaded,
        name=_name(model.model),
        folder=checkpoint.resolve_text(model.model, model.adapter),
        chat_template=chat_template,
        attribution=Index(attribution) if attribution else None,
        settings=replace(
            server,
            max_sequences=engine.max_sequences,
            keys=read_keys(api_key_file) if api_key_file else (),
        ),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # once drained, the process ends as it should
    print(f"serving {running.info.model} on {running.bind()}", file=sys.stderr, flush=True)
    running.run()


def _name(model: str | None) -> str:
    """What clients see: the hub id, or the folder's name but not where it is."""
    if model is None:
        return "starcoder-nano"
    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model
