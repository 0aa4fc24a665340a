"""A job: the requests of one HTTP exchange on their way through the engine, as the event loop sees it."""

import asyncio
from collections.abc import Sequence

from starcoder.errors import StarcoderError
from starcoder.request import Chunk, CompletionRequest


class Job:
    """The requests of one HTTP exchange. Await `accepted`, then `take` until it gives nothing."""

    def __init__(self, requests: Sequence[CompletionRequest], *, is_stream: bool):
        self.requests, self.is_stream = requests, is_stream
        self._unread: list[tuple[int, Chunk]] = []
        self._news = asyncio.Event()
        self._error: StarcoderError | None = None
        self._is_accepted = self._is_done = False

    async def accepted(self) -> None:
        """Wait until the engine has taken all requests.

        Raises:
            StarcoderError: it refused one; none of them runs then.
        """
        while not (self._is_accepted or self._error):
            self._news.clear()
            await self._news.wait()
        if self._error:
            raise self._error

    async def take(self) -> list[tuple[int, Chunk]]:
        """New chunks, each with the position of its request; [] after the last.

        Raises:
            StarcoderError: the engine has died, or the job was ended from outside.
        """
        while not (self._unread or self._is_done or self._error):
            self._news.clear()
            await self._news.wait()
        if self._error:
            raise self._error
        taken, self._unread = self._unread, []
        return taken

    @property
    def num_unread(self) -> int:
        return len(self._unread)

    def receive(
        self,
        chunks: Sequence[tuple[int, Chunk]] = (),
        *,
        is_done: bool = False,
        error: StarcoderError | None = None,
    ) -> None:
        """Called on the event loop with what the worker has for the job."""
        self._is_accepted = True
        self._unread += chunks
        self._is_done |= is_done
        self._error = self._error or error
        self._news.set()
