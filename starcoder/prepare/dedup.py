"""Finds duplicate documents: exact ones by hash, near ones by MinHash LSH on token shingles, then verified."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupSettings:
    """When two documents are the same. Validated when made: `ConfigError` names the field."""

    threshold: float = 0.7  # Jaccard of the shingle sets from which on documents are near-duplicates
    num_permutations: int = 256
    shingle_tokens: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The clusters of n documents, numbered as they came; the first of a cluster is its original."""

    original: npt.NDArray[np.int64]  # (n,): which document stands for this one; itself: it stays
    is_exact: npt.NDArray[np.bool_]  # (n,): a byte-for-byte copy of an earlier document

    @property
    def num_exact(self) -> int:
        """Copies that an exact comparison alone would drop."""
        return int(self.is_exact.sum())

    @property
    def num_near(self) -> int:
        """Documents to drop that are no exact copies."""
        return int((self.original != np.arange(len(self.original))).sum()) - self.num_exact

    def stays(self, index: int) -> bool:
        """Whether this document is the original of its cluster."""
        return int(self.original[index]) == index


def find_duplicates(
    texts: Iterable[str],
    settings: DedupSettings = DedupSettings(),
    *,
    workers: int = 1,
    scratch: Path | None = None,
) -> Duplicates:
    """Clusters of equal and similar documents; the same for any number of `workers` (threads).

    Reads `texts` once and holds a few batches of them at a time, plus some 400 bytes a document; shingle
    hashes, about as large as the texts, lie in a file that is removed under `scratch` (the system's folder
    for temporary files if not given).
    """
    raise NotImplementedError
