"""One whole step of a network in a single native call: embedding to logits over a block cache.

Between two tokens Python does a few microseconds of bookkeeping here and nothing per layer.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.kernels import native


@dataclass(frozen=True, slots=True)
class NativeSegment:
    """New tokens of one sequence: they follow `past` tokens in `blocks`, and are stored there too."""

    tokens: Sequence[int]
    past: int
    blocks: Sequence[int]


class NativeStep:
    """Runs steps of one network over one cache (layers, blocks, block, K, H), both float32 on the CPU."""

    def __init__(self, network: native.Model, keys: Tensor, values: Tensor, *, variant: str | None = None):
        """The caller keeps the memory that `network` points to alive."""
        library = native.library()
        assert library is not None, "callers ask `available` first"
        assert keys.is_contiguous() and values.is_contiguous() and keys.dtype == torch.float32
        self._library, self._workspace = library, native.Workspace()
        self._variant = None if variant is None else variant.encode()
        self._model, self._pools = network, (keys, values)
        self._step = native.Step(
            block_size=keys.size(2),
            num_blocks=keys.size(1),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            layer_stride=keys.stride(0),
        )
        self._vocab_size = self._model.head.columns

    def run(
        self,
        segments: Sequence[NativeSegment],
        rows: Sequence[int],
        *,
        threads: int | None = None,
        best: "array[int] | None" = None,
    ) -> Tensor:
        """Logits (len(rows), V) of the flat tokens numbered `rows`; stores keys and values of all.

        `best`, an `array("i")` of as many positions, takes the token of the largest logit of each row.
        """
        logits = torch.empty(len(rows), self._vocab_size)
        self._run(segments, rows, threads, logits=logits, best=best)
        return logits

    def hidden(
        self, segments: Sequence[NativeSegment], rows: Sequence[int], *, threads: int | None = None
    ) -> Tensor:
        """Hidden states (len(rows), D) after the last norm, in place of logits."""
        out = torch.empty(len(rows), self._model.hidden)
        self._run(segments, rows, threads, hidden=out)
        return out

    def _run(
        self,
        segments: Sequence[NativeSegment],
        rows: Sequence[int],
        threads: int | None,
        *,
        logits: Tensor | None = None,
        hidden: Tensor | None = None,
        best: "array[int] | None" = None,
    ) -> None:
        step, stride = self._step, max(len(segment.blocks) for segment in segments)
        tokens: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        for segment in segments:
            new = segment.tokens
            tokens += new
            positions += range(segment.past, segment.past + len(new))
            tables += segment.blocks
            tables += [0] * (stride - len(segment.blocks))
        new_lens = [len(segment.tokens) for segment in segments]
        past_lens = [segment.past for segment in segments]
        step.num_tokens, step.num_segments, step.num_rows = len(tokens), len(segments), len(rows)
        step.table_stride = stride
        numbers = array("i", [*tokens, *positions, *new_lens, *past_lens, *tables, *rows])
        step.tokens, _ = numbers.buffer_info()
        step.positions = step.tokens + numbers.itemsize * len(tokens)
        step.new_lens = step.positions + numbers.itemsize * len(tokens)
        step.past_lens = step.new_lens + numbers.itemsize * len(segments)
        step.tables = step.past_lens + numbers.itemsize * len(segments)
        step.rows = step.tables + numbers.itemsize * len(tables)
        step.hidden = None if hidden is None else hidden.data_ptr()
        step.logits = None if logits is None else logits.data_ptr()
        step.best = None if best is None else best.buffer_info()[0]
        status = self._library.sc_step(
            self._workspace.handle,
            self._variant,
            threads or torch.get_num_threads(),
            ctypes.byref(self._model),
            ctypes.byref(step),
        )
        native.check(status, f"a step of {len(tokens)} tokens")
