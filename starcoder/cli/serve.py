"""`starcoder serve`: the model behind HTTP, for every editor and client that already exists."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from starcoder.cli.options import ModelOptions
from starcoder.errors import MissingExtraError

_FLAG = Parameter(show_default=False)


@Parameter(name="*", group=Group("Server", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Where the server listens, whom it answers and how much it takes on."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network of this machine."""
    port: int = 8080
    """Port to listen on; 0 takes one that is free."""
    api_key_file: Path | None = None
    """Keys that clients must send: one a line, optionally with its requests per minute."""
    max_queue: int = 64
    """Requests that may wait; more are answered with 429."""
    max_sequences: int = 64
    """Sequences that run at the same time."""
    default_max_tokens: int = 256
    """Tokens to make where a request says nothing."""
    chat_template: str | None = None
    """no_system, default, alpaca or a jinja file; the checkpoint's own if not given."""
    attribution: Path | None = None
    """Index of `attribution build`, for /overlap and the `attribution` field of requests."""
    compat: Literal["lenient", "tgi-strict"] = "lenient"
    """tgi-strict has the limits and messages of Text Generation Inference."""
    trust_prompts: Annotated[bool, _FLAG] = False
    """Leave raw prompts with sentinels as they are instead of planning them anew."""
    allow_host: tuple[str, ...] = ()
    """A name of this server beside localhost; may be given several times."""
    allow_origin: tuple[str, ...] = ()
    """A web origin whose pages may ask, or *; may be given several times."""
    drain_s: int = 60
    """Seconds that running requests get after a signal to stop."""
    prepare: Annotated[bool, Parameter(negative="--no-prepare")] = True
    """While idle, complete what an editing session asks next if its last completion is accepted."""
    verbose: Annotated[bool, Parameter(alias="-v", show_default=False)] = False
    """Log events on stderr; never a prompt."""
    config: Path | None = None
    """TOML file with options of the same names; the command line goes before it."""


def run(*, options: ServeOptions = ServeOptions(), model: ModelOptions = ModelOptions()) -> None:
    """Serve completions over HTTP, in the dialects of OpenAI, TGI, llama.cpp, Ollama and Tabby.

    OpenAPI is at /docs, numbers are at /metrics. A first Ctrl-C lets running
    requests end, a second one does not.

    $ starcoder serve
    $ starcoder serve --model bigcode/starcoder2-3b --api-key-file keys.txt
    """
    import logging
    import signal
    import sys

    try:
        from starcoder.server import serving
        from starcoder.server.settings import ServerSettings, read_keys
    except ImportError as error:
        raise MissingExtraError(f"the server needs {error.name}, which is not installed", "serve") from None
    from starcoder import checkpoint
    from starcoder.engine.settings import EngineSettings
    from starcoder.prepare.attribution import Index

    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        max_queue=options.max_queue,
        max_sequences=options.max_sequences,
        default_max_tokens=options.default_max_tokens,
        keys=read_keys(options.api_key_file) if options.api_key_file else (),
        allowed_hosts=options.allow_host,
        allowed_origins=options.allow_origin,
        compat=options.compat,
        trust_prompts=options.trust_prompts,
        drain_s=options.drain_s,
    )
    loaded = model.load(
        EngineSettings(
            max_sequences=options.max_sequences,
            max_queue=options.max_queue + options.max_sequences,
            prepare=options.prepare,
        )
    )
    folder = checkpoint.resolve_text(model.model, model.adapter)
    server = serving.Server(
        loaded,
        name=_name(model.model),
        folder=folder,
        chat_template=options.chat_template,
        attribution=Index(options.attribution) if options.attribution else None,
        settings=settings,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # once drained, the process ends as it should
    print(f"serving {server.info.model} on {server.bind()}", file=sys.stderr, flush=True)
    server.run()


def _name(model: str | None) -> str:
    """What clients see: the hub id, or the folder's name but not where it is."""
    if model is None:
        return "starcoder-nano"
    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model
