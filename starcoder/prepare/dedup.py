"""Finds duplicate documents: exact ones by hash, near ones by MinHash LSH on token shingles, then verified.

Each document is compared with earlier ones that stay and share a band of its signature, by the exact
Jaccard of their shingle sets: whatever is dropped is similar to a document that stays, which connected
components do not promise, and a bucket of thousands of copies costs one comparison each. Documents shorter
than a shingle have exact duplicates only.
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from starcoder.prepare.settings import DedupSettings
from starcoder.prepare.shingles import Hashes, Indexes, Signer, common, shingles

Keys = npt.NDArray[np.uint64]

_BATCH_CHARACTERS = 1 << 20
_MAX_STAYING = 64  # documents of a bucket that later ones are compared with


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which of n documents are duplicates, numbered as they came."""

    original: Indexes  # (n,): the earlier document that stays instead of this one; itself: it stays
    is_exact: npt.NDArray[np.bool_]  # (n,): a copy of an earlier document, character for character

    @property
    def num_exact(self) -> int:
        """Copies that an exact comparison alone would drop."""
        return int(self.is_exact.sum())

    @property
    def num_near(self) -> int:
        """Documents to drop that are no exact copies."""
        return int((self.original != np.arange(len(self.original))).sum()) - self.num_exact

    def stays(self, index: int) -> bool:
        """Whether the document is no duplicate."""
        return int(self.original[index]) == index


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What is kept of a batch of n documents."""

    digests: npt.NDArray[np.uint64]  # (n, 2)
    keys: Keys  # (n, bands): documents that share a key of a band are compared
    sizes: Indexes  # (n,): shingles of each
    shingles: Hashes  # all sets behind one another


def find_duplicates(
    texts: Iterable[str],
    settings: DedupSettings = DedupSettings(),
    *,
    workers: int = 1,
    scratch: Path | None = None,
) -> Duplicates:
    """Equal and similar documents; the result is the same for any number of `workers` (threads).

    Reads `texts` once and holds a few batches of them at a time, plus some 400 bytes a document; shingle
    hashes, about as large as the texts, lie in a file that is removed under `scratch` (the system's folder
    for temporary files if not given).
    """
    signer = Signer(settings.num_permutations, settings.seed)
    parts = _map_in_order(lambda batch: fingerprint(batch, settings, signer), batches(texts), workers)
    return compare_all(parts, settings, scratch=scratch)


def compare_all(
    fingerprints: Iterable[Fingerprints], settings: DedupSettings, *, scratch: Path | None = None
) -> Duplicates:
    """Duplicates among documents whose fingerprints come in their order; shingles lie under `scratch`."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        parts = [_shelve(part, file) for part in fingerprints]
        if not parts:
            return Duplicates(np.empty(0, np.int64), np.empty(0, np.bool_))
        file.flush()
        digests, keys = np.concatenate([p.digests for p in parts]), np.concatenate([p.keys for p in parts])
        sizes = np.concatenate([p.sizes for p in parts])
        pool = np.memmap(file, np.uint32, "r") if sizes.any() else np.empty(0, np.uint32)
        return compare(digests, keys, sizes, pool, settings)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about a million characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fingerprint(texts: Iterable[str], settings: DedupSettings, signer: Signer) -> Fingerprints:
    """What deduplication keeps of some documents; `signer` has the settings' permutations and seed."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    digests = b"".join(hashlib.blake2b(data, digest_size=16).digest() for data in encoded)
    sets = [shingles(data, settings.shingle_tokens) for data in encoded]
    signatures = np.array([signer.sign(one) for one in sets], np.uint64)
    used = signatures[:, : settings.num_bands * settings.rows].reshape(len(sets), -1, settings.rows)
    keys = np.zeros(used.shape[:2], np.uint64)
    for row in range(settings.rows):
        keys = (keys ^ used[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(31)
    return Fingerprints(
        np.frombuffer(digests, np.uint64).reshape(-1, 2),
        keys,
        np.array([len(one) for one in sets], np.int64),
        np.concatenate(sets),
    )


def compare(
    digests: npt.NDArray[np.uint64], keys: Keys, sizes: Indexes, pool: Hashes, settings: DedupSettings
) -> Duplicates:
    """Duplicates from all fingerprints; `pool` holds the shingle sets behind one another."""
    first = _first_equals(digests)
    original = np.arange(len(first))
    is_exact = first != original
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    staying: dict[int, list[int]] = {}  # per bucket
    for document, buckets in _meetings(keys, np.flatnonzero(~is_exact & (sizes > 0))):
        others = np.array(sorted({other for one in buckets for other in staying.get(one, ())}), np.int64)
        similar = _most_similar(document, others, settings.similarity, pool, bounds)
        if similar is not None:
            original[document] = similar
            continue
        for one in buckets:
            members = staying.setdefault(one, [])
            if len(members) < _MAX_STAYING:
                members.append(document)
    return Duplicates(original[first], is_exact)


def _shelve(part: Fingerprints, file: BinaryIO) -> Fingerprints:
    """Moves the shingles to the file; the rest is small."""
    file.write(part.shingles.tobytes())
    return Fingerprints(part.digests, part.keys, part.sizes, np.empty(0, np.uint32))


def _map_in_order(
    function: Callable[[list[str]], Fingerprints], items: Iterable[list[str]], workers: int
) -> Iterator[Fingerprints]:
    """`map` on threads: the native library and numpy leave the interpreter to others while they work."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[Fingerprints]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _first_equals(digests: npt.NDArray[np.uint64]) -> Indexes:
    """For each document the first one of the same digest."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first of equals stays first
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(digests[order].view(np.int64), axis=0) != 0).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]]
    return first


def _meetings(keys: Keys, candidates: Indexes) -> Iterator[tuple[int, list[int]]]:
    """Documents in their order, each with the buckets that it shares with another one."""
    documents, buckets, num_buckets = [], [], 0
    for band in range(keys.shape[1]):
        column = keys[candidates, band]
        order = np.argsort(column, kind="stable")
        column = column[order]
        run = np.concatenate([np.zeros(1, np.int64), np.cumsum(column[1:] != column[:-1])])[: len(column)]
        is_shared = np.bincount(run)[run] > 1
        documents.append(candidates[order[is_shared]])
        buckets.append(run[is_shared] + num_buckets)
        num_buckets += len(column)
    order = np.argsort(np.concatenate(documents), kind="stable")
    ordered, ids = np.concatenate(documents)[order], np.concatenate(buckets)[order]
    edges = [*np.flatnonzero(np.diff(ordered, prepend=-1)).tolist(), len(ordered)]
    for start, end in pairwise(edges):
        yield int(ordered[start]), ids[start:end].tolist()


def _most_similar(
    document: int, others: Indexes, threshold: float, pool: Hashes, bounds: Indexes
) -> int | None:
    """Which of the others has the largest Jaccard with the document, if one reaches the threshold."""
    sizes, size = bounds[others + 1] - bounds[others], bounds[document + 1] - bounds[document]
    others = others[np.minimum(sizes, size) >= threshold * np.maximum(sizes, size)]  # no Jaccard is larger
    if not len(others):
        return None
    shared = common(pool, bounds, document, others)
    union = bounds[others + 1] - bounds[others] + size - shared
    best = int((shared / union).argmax())
    return int(others[best]) if shared[best] >= threshold * union[best] else None
