"""Server-sent events: one JSON document each, never half a character."""

import json

from starcoder.server.exchange import Json


def sse(document: Json, *, space: str = " ") -> str:
    """One event; TGI writes no `space` after the colon."""
    return f"data:{space}{json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
