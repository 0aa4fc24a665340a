"""`starcoder lsp`: a language server that gives editors inline completions."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.lsp.settings import LspSettings

_LINE_BYTES = 1 << 16  # a header's line; bodies are read by their length


def run(
    *,
    stdio: bool = False,
    tcp: int | None = None,
    keep_server: Annotated[Path | None, Parameter(show=False)] = None,
    lsp: Annotated[LspSettings, Section("Completions")] = LspSettings(),
) -> None:
    """Serve inline completions to an editor over the language server protocol.

    Editors start this command themselves; `starcoder editor-config` prints their
    settings. Completions come from a running `starcoder serve`; where there is none,
    one is started and stopped with the last editor. Settings are also read from
    the table [lsp] of ~/.config/starcoder/starcoder.toml and of the project's
    starcoder.toml.

    $ starcoder lsp
    $ starcoder lsp --tcp 9257 --model bigcode/starcoder2-3b --quantize int4

    Args:
        stdio: Speak over standard input and output, which is the default.
        tcp: Listen on this port of 127.0.0.1 instead of standard input and output.
    """
    from starcoder.lsp import process

    if keep_server is not None:
        raise SystemExit(process.keep(keep_server, process.SharedServer.of(lsp).arguments))
    raise SystemExit(asyncio.run(_serve(lsp, tcp)))


async def _serve(settings: LspSettings, port: int | None) -> int:
    from starcoder.lsp.server import serve

    if port is not None:

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve(reader, writer, settings)

        listening = await asyncio.start_server(client, "127.0.0.1", port, limit=_LINE_BYTES)
        async with listening:
            sys.stderr.write(f"listening on 127.0.0.1:{listening.sockets[0].getsockname()[1]}\n")
            await listening.serve_forever()
    # The protocol gets streams of its own: what else writes to stdout goes to the editor's log.
    incoming, outgoing = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_LINE_BYTES, loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), incoming)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, outgoing)
    return await serve(reader, asyncio.StreamWriter(transport, protocol, reader, loop), settings)
