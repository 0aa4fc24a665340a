"""Prepares a dataset in stages that a killed run takes up again: list, take, deduplicate, plan, write, card.

Each stage leaves a file in `OUTPUT/.work` that is either whole or absent; the next run starts behind the last
whole one and ends with the same bytes. Memory: a batch of texts in each worker, and about a kilobyte for each
document.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from starcoder.errors import ConfigError, StarcoderError
from starcoder.files import replace_atomically, write_whole
from starcoder.prepare import card, shards, tables
from starcoder.prepare.dedup import Duplicates, find_duplicates
from starcoder.prepare.dedup_ray import find_duplicates_of_batches
from starcoder.prepare.ingest import Batch, Ingestor, compared_texts, read_batch, write_batch
from starcoder.prepare.inputs import check_inputs, list_inputs
from starcoder.prepare.plan import Placed, make_plan
from starcoder.prepare.records import Dropped, Listing, Record, Repository
from starcoder.prepare.settings import PrepareSettings

log = logging.getLogger(__name__)

FORMAT = 1  # of the dataset and of the stages' files; another number is other work
_BATCH_BYTES = 4_000_000
_BATCH_RECORDS = 500

Tell = Callable[[str, int, int], None]  # what is being done, how many of it are done, and of how many


@dataclass(frozen=True, slots=True)
class Job:
    """Records of one repository that are read together."""

    number: int
    repository: Repository
    records: tuple[Record, ...]


def prepare(
    settings: PrepareSettings, output: Path, *, tell: Tell = lambda stage, done, total: None
) -> dict[str, object]:
    """Write the dataset and return its figures, which also lie in `output`/dataset.json.

    A finished dataset of the same settings is left as it is. `tell` hears of each step.

    Raises:
        ConfigError: inputs that are not there, an output folder that holds something else, or no document
            that stays.
    """
    if not settings.inputs and not settings.issues:
        raise ConfigError("there is nothing to prepare", "name folders, repositories or their URLs")
    tables.require_pyarrow()
    ingestor = Ingestor.of(settings)
    style = ingestor.tokenizer.sentinels.style
    if settings.pack_tokens and style != settings.family:
        raise ConfigError(
            f"rows packed for {settings.family!r} need its tokenizer; the one given is of {style!r}",
            "--tokenizer names the folder of the model to train, --family its family",
        )
    check_inputs(settings)
    is_new = not (output / ".work").exists()
    work = _open(settings, output)
    if work is None:
        return read_figures(output)
    try:
        _prepare(settings, ingestor, work, tell)
    except StarcoderError:
        if is_new:  # nothing is left that would stand in the way of the corrected command
            shutil.rmtree(work)
            if not any(output.iterdir()):
                output.rmdir()
        raise
    _publish(work, output)
    return read_figures(output)


def _prepare(settings: PrepareSettings, ingestor: Ingestor, work: Path, tell: Tell) -> None:
    """Carry out the stages that are not done yet; the data set is in `work`/final."""
    tell("listing", 0, 1)
    listings = _listed(settings, work)
    jobs = list(_jobs(listings))
    _ingest_all(jobs, ingestor, work, tell)
    targets = [*_base_targets(settings, work), *(_target(work, job.number) for job in jobs)]
    batches = [read_batch(target) for target in targets]
    num_base = len(targets) - len(jobs)
    documents = [(number, row) for number, batch in enumerate(batches) for row in batch.rows]
    first = sum(len(batch.rows) for batch in batches[:num_base])  # document that is not of the base
    dropped = [*_dropped_listings(listings), *(one for batch in batches for one in batch.dropped)]
    if len(documents) == first:
        reasons = card.reasons(dropped)
        raise ConfigError(
            f"no document is left; left out: {reasons}", "lower the filters, or name other inputs"
        )
    duplicates = _deduplicated(targets, batches, work, settings, tell)
    kept, left_out = _without_duplicates(documents, first, duplicates, settings)
    if not kept:
        raise ConfigError("every document is a duplicate of the base", "there is nothing new to prepare")
    plan = make_plan(kept, settings)
    final = work / "final"
    writer = shards.Writer(final, targets, settings, ingestor.tokenizer)
    tell("writing", 0, 1)
    writer.all(plan)
    dropped += left_out
    tables.write_dropped(final, dropped, settings)
    tables.write_masked(final, plan)
    seen = [row for _, row in documents[first:]]
    figures = card.figures(settings, listings, dropped, seen, plan)
    figures |= {"fingerprint": _fingerprint(settings), "packed_rows": writer.packed_rows()}
    card.write(figures, final)
    write_whole(work / "finished", b"")


def _dropped_listings(listings: Sequence[Listing]) -> Iterator[Dropped]:
    for listing in listings:
        for one in listing.dropped:
            yield replace(one, repository=listing.repository.name)


def _without_duplicates(
    documents: Sequence[Placed], first: int, duplicates: Duplicates, settings: PrepareSettings
) -> tuple[list[Placed], list[Dropped]]:
    """The documents from `first` on that stay, and those that do not with what they are a duplicate of."""
    kept: list[Placed] = []
    dropped: list[Dropped] = []
    sizes: Counter[str] = Counter()
    for index in range(first, len(documents)):
        row, original = documents[index][1], int(duplicates.original[index])
        if original != index:
            what = "exact duplicate" if duplicates.is_exact[index] else "near duplicate"
            where = "in the base" if original < first else ""
            other = documents[original][1]
            stays = f"{other.repository}:{other.path}"
            dropped.append(Dropped(row.path, what, where, repository=row.repository, duplicate_of=stays))
        elif 0 < settings.max_repository_bytes < sizes[row.repository] + row.length:
            reason = "repository above max_repository_bytes"
            dropped.append(Dropped(row.path, reason, repository=row.repository))
        else:
            sizes[row.repository] += row.length
            kept.append(documents[index])
    return kept, dropped


def read_figures(output: Path) -> dict[str, object]:
    """The figures of a prepared dataset.

    Raises:
        ConfigError: there is none.
    """
    try:
        figures: dict[str, object] = json.loads((output / "dataset.json").read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"{str(output)!r} holds no prepared dataset", "name one that prepare wrote"
        ) from None
    return figures


def _open(settings: PrepareSettings, output: Path) -> Path | None:
    """The folder of the stages, new or left by a killed run; None: the dataset is there."""
    asked = _fingerprint(settings)
    work = output / ".work"
    if (work / "finished").exists():
        _publish(work, output)
    if (output / "dataset.json").exists():
        if read_figures(output).get("fingerprint") != asked:
            raise ConfigError(
                f"{str(output)!r} holds a dataset of other settings", "name another folder, or remove it"
            )
        return None
    known = work / "settings"
    if known.exists() and (work / "listing").exists():
        if known.read_text() != asked:
            raise ConfigError(
                f"{str(output)!r} holds the unfinished work of other settings",
                "continue with the same command, name another folder, or remove it",
            )
    elif output.is_dir() and any(path.name != ".work" for path in output.iterdir()):
        raise ConfigError(f"{str(output)!r} is not empty", "name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    write_whole(known, asked.encode())
    return work


def _fingerprint(settings: PrepareSettings) -> str:
    """A name of everything that the result depends on, but the inputs' state."""
    document = asdict(replace(settings, workers=1, ray=False))
    text = json.dumps([FORMAT, document], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def _listed(settings: PrepareSettings, work: Path) -> list[Listing]:
    """The inputs as the first run found them: commits that came since are for another dataset."""
    path = work / "listing"
    if not path.exists():
        known = read_figures(settings.base)["revisions"] if settings.base else {}
        assert isinstance(known, dict), "as the card wrote it"
        found = [_if_new(listing, known) for listing in list_inputs(settings, work)]
        write_whole(path, json.dumps([asdict(listing) for listing in found]))
    listings = [
        Listing(
            repository=Repository(**row["repository"]),
            records=tuple(Record(**record) for record in row["records"]),
            dropped=tuple(Dropped(**one) for one in row["dropped"]),
        )
        for row in json.loads(path.read_bytes())
    ]
    log.info("listed %d documents", sum(len(listing.records) for listing in listings))
    return listings


def _if_new(listing: Listing, known: Mapping[str, str]) -> Listing:
    """The listing, without records if the base has the same commit of the repository."""
    repository = listing.repository
    if not repository.revision or known.get(repository.name) != repository.revision:
        return listing
    one = Dropped("", "repository at a commit that the base has", repository.revision)
    return replace(listing, records=(), dropped=(one,))


def _jobs(listings: list[Listing]) -> Iterator[Job]:
    number = 0
    for listing in listings:
        start, size = 0, 0
        for end, record in enumerate(listing.records, 1):
            size += record.size
            if size >= _BATCH_BYTES or end - start >= _BATCH_RECORDS or end == len(listing.records):
                yield Job(number, listing.repository, listing.records[start:end])
                number, start, size = number + 1, end, 0


def _target(work: Path, number: int) -> Path:
    return work / f"batch-{number:06}"


def _ingest_all(jobs: list[Job], ingestor: Ingestor, work: Path, tell: Tell) -> None:
    """Take what is not taken yet, in processes if there are several workers."""
    left = [job for job in jobs if not _target(work, job.number).with_suffix(".json").exists()]
    sizes = {job.number: len(job.records) for job in jobs}
    done, total = sum(sizes.values()) - sum(len(job.records) for job in left), sum(sizes.values())
    with ExitStack() as stack:
        if ingestor.settings.workers == 1 or len(left) < 2:
            done_jobs: Iterator[int] = map(partial(_ingested, ingestor, work), left)
        else:
            context = multiprocessing.get_context("spawn")
            workers = ProcessPoolExecutor(
                ingestor.settings.workers, context, _start_worker, (ingestor.settings,)
            )
            done_jobs = stack.enter_context(workers).map(_ingest_one, [(job, str(work)) for job in left])
        tell("reading", done, total)
        for number in done_jobs:
            done += sizes[number]
            tell("reading", done, total)


def _ingested(ingestor: Ingestor, work: Path, job: Job) -> int:
    """The job's number once it is done."""
    ingestor.ingest(job.repository, job.records, _target(work, job.number))
    return job.number


class _Worker(threading.local):
    """What a worker process keeps between batches."""

    ingestor: Ingestor | None = None


_WORKER = _Worker()


def _start_worker(settings: PrepareSettings) -> None:
    _WORKER.ingestor = Ingestor.of(settings)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _ingest_one(task: tuple[Job, str]) -> int:
    job, folder = task
    assert _WORKER.ingestor is not None, "the worker was started"
    return _ingested(_WORKER.ingestor, Path(folder), job)


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _deduplicated(
    targets: Sequence[Path], batches: list[Batch], work: Path, settings: PrepareSettings, tell: Tell
) -> Duplicates:
    path = work / "duplicates.npz"

    def texts() -> Iterator[str]:
        for number, (target, batch) in enumerate(zip(targets, batches, strict=True)):
            tell("comparing", number, len(targets))
            yield from compared_texts(target, batch.rows)

    if not path.exists():
        if settings.ray:
            found = find_duplicates_of_batches(targets, settings.dedup, scratch=work)
        else:
            found = find_duplicates(texts(), settings.dedup, workers=settings.workers, scratch=work)
        with replace_atomically(path) as part, part.open("wb") as file:
            np.savez(file, original=found.original, is_exact=found.is_exact)
    with np.load(path) as stored:
        return Duplicates(stored["original"], stored["is_exact"])


def _base_targets(settings: PrepareSettings, work: Path) -> list[Path]:
    """The base's documents as batches, which every new document is compared with."""
    if settings.base is None:
        return []
    targets = []
    for number, rows in enumerate(tables.read_documents(settings.base)):
        targets.append(work / f"base-{number:06}")
        if not targets[-1].with_suffix(".json").exists():
            write_batch(targets[-1], [(row, text.encode()) for row, text in rows], ())
    return targets


def _publish(work: Path, output: Path) -> None:
    """Move the finished dataset to its place, its sign of being whole last."""
    final = work / "final"
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else []
    for name in sorted(names, key=lambda name: name == "dataset.json"):
        (final / name).replace(output / name)
    shutil.rmtree(work)
