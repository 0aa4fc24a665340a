"""Finds duplicates in a Ray Dataset: fingerprints are made all over the cluster, compared on one machine.

The code is that of `dedup`, and so is the result. Texts never leave the cluster's workers; the machine that
asks holds some 400 bytes a document, and the shingle hashes, about as large as the texts, on disk.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starcoder.errors import MissingExtraError
from starcoder.prepare.dedup import Duplicates, Fingerprints, compare_all, fingerprint
from starcoder.prepare.ingest import compared_texts, read_batch
from starcoder.prepare.settings import DedupSettings
from starcoder.prepare.shingles import Signer

if TYPE_CHECKING:
    from typing import Protocol

    Columns = dict[str, np.ndarray]

    class Options(Protocol):
        preserve_order: bool

    class Context(Protocol):
        @property
        def execution_options(self) -> Options: ...

    class Dataset(Protocol):
        """What is asked of a `ray.data.Dataset`."""

        @property
        def context(self) -> Context: ...
        def map_batches(self, function: object, **options: object) -> "Dataset": ...
        def iter_batches(self, **options: object) -> "Iterator[Columns]": ...


def find_duplicates_of_batches(
    targets: Sequence[Path], settings: DedupSettings = DedupSettings(), *, scratch: Path | None = None
) -> Duplicates:
    """Equal and similar documents of the batches that `ingest` wrote to a folder that all machines see.

    Runs on the cluster that ray is connected to or that RAY_ADDRESS names, else on one started on this
    machine and stopped afterwards.

    Raises:
        ConfigError: ray is not installed.
    """
    try:
        ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    except ImportError:
        raise MissingExtraError("finding duplicates on a cluster needs ray", "ray") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        data.DataContext.get_current().enable_progress_bars = False
        files = data.from_items([{"target": str(target.resolve())} for target in targets])
        return find_duplicates_on_ray(files.flat_map(_documents), settings, scratch=scratch)
    finally:
        if is_ours:
            ray.shutdown()


def _documents(row: dict[str, str]) -> list[dict[str, str]]:
    target = Path(row["target"])
    return [{"content": text} for text in compared_texts(target, read_batch(target).rows)]


def find_duplicates_on_ray(
    dataset: "Dataset",
    settings: DedupSettings = DedupSettings(),
    *,
    column: str = "content",
    batch_size: int = 256,
    scratch: Path | None = None,
) -> Duplicates:
    """Equal and similar documents of the dataset's `column`, numbered in the dataset's order.

    Sets `preserve_order` in the dataset's context.
    """
    dataset.context.execution_options.preserve_order = True
    signer = Signer(settings.num_permutations, settings.seed)

    def columns_of(batch: "Columns") -> "Columns":
        part = fingerprint(batch[column].tolist(), settings, signer)
        return {
            "digests": part.digests.view(np.int64),  # Arrow has no trouble with signed numbers
            "keys": part.keys.view(np.int64),
            "sizes": part.sizes,
            "shingles": np.array(_split(part), object),
        }

    made = dataset.map_batches(columns_of, batch_size=batch_size, batch_format="numpy")
    batches = made.iter_batches(batch_size=batch_size, batch_format="numpy")
    return compare_all(map(_joined, batches), settings, scratch=scratch)


def _split(part: Fingerprints) -> list[bytes]:
    ends = np.cumsum(part.sizes)
    return [part.shingles[end - size : end].tobytes() for end, size in zip(ends, part.sizes, strict=True)]


def _joined(columns: "Columns") -> Fingerprints:
    return Fingerprints(
        np.ascontiguousarray(columns["digests"]).view(np.uint64),
        np.ascontiguousarray(columns["keys"]).view(np.uint64),
        columns["sizes"],
        np.frombuffer(b"".join(columns["shingles"]), np.uint32),
    )
