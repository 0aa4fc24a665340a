"""Duplicates against exact Jaccard, computed here from scratch over sets of token tuples."""

import random
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.errors import ConfigError
from starcoder.prepare import shingles as shingling
from starcoder.prepare.dedup import find_duplicates
from starcoder.prepare.settings import DedupSettings

NUM_DOCUMENTS = 5000
THRESHOLD = 0.7


def shingle_set(text: str) -> frozenset[tuple[bytes, ...]]:
    tokens = re.findall(rb"[A-Za-z0-9_\x80-\xff]+", text.encode("utf-8", "surrogatepass"))
    return frozenset(tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4))


def similar_pairs(sets: Sequence[frozenset], threshold: float) -> set[tuple[int, int]]:
    """All pairs whose Jaccard reaches the threshold: similar sets share one of their rarest members."""
    frequency = Counter(member for one in sets for member in one)
    index: dict[object, list[int]] = defaultdict(list)
    found = set()
    for number, one in enumerate(sets):
        rarest = sorted(one, key=lambda member: (frequency[member], member))
        rarest = rarest[: len(one) - int(np.ceil(threshold * len(one))) + 1]
        for other in {other for member in rarest for other in index[member]}:
            shared = len(one & sets[other])
            if shared >= threshold * (len(one) + len(sets[other]) - shared):
                found.add((other, number))
        for member in rarest:
            index[member].append(number)
    return found


def dropped_exactly(num: int, pairs: set[tuple[int, int]]) -> set[int]:
    """The documents that are similar to an earlier one that stays."""
    earlier = defaultdict(list)
    for first, second in pairs:
        earlier[second].append(first)
    dropped: set[int] = set()
    for number in range(num):
        if any(first not in dropped for first in earlier[number]):
            dropped.add(number)
    return dropped


def mutated(text: str, share: float, generator: random.Random) -> str:
    """The text with a word changed in a share of its lines."""
    lines = text.splitlines(keepends=True)
    for place in generator.sample(range(len(lines)), round(share * len(lines))):
        lines[place] = re.sub(r"\w+", lambda m: f"{m[0]}_{generator.randrange(10**6)}", lines[place], count=1)
    return "".join(lines)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Pieces of the standard library among which are copies, edited from hardly to heavily."""
    generator = random.Random(7)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    files = [path for path in files if path.parent.name != "site-packages"]
    pieces: list[str] = []
    for path in files:
        lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
        pieces += ["".join(lines[i : i + 60]) for i in range(0, len(lines) - 20, 60)]
    generator.shuffle(pieces)
    made = pieces[: NUM_DOCUMENTS // 2]
    while len(made) < NUM_DOCUMENTS:
        original = made[generator.randrange(NUM_DOCUMENTS // 2)]
        made.append(mutated(original, generator.uniform(0, 0.25), generator))
    generator.shuffle(made)
    return made


@pytest.fixture(scope="module")
def truth(documents) -> set[tuple[int, int]]:
    return similar_pairs([shingle_set(text) for text in documents], THRESHOLD)


def test_recall_and_precision_against_exact_jaccard(documents, truth):
    found = find_duplicates(documents)
    assert len(truth) > 2000, "the set is worth something"
    dropped = {number for number in range(len(documents)) if not found.stays(number)}
    exactly = dropped_exactly(len(documents), truth)
    assert len(dropped & exactly) / len(exactly) >= 0.97
    assert len(dropped & exactly) / len(dropped) >= 0.95
    # Pair by pair: whatever is dropped is similar to what stands for it, and no similar pair stays.
    assert {(int(found.original[number]), number) for number in dropped} <= truth
    both_stay = [pair for pair in truth if not dropped & set(pair)]
    assert 1 - len(both_stay) / len(truth) >= 0.97


def test_no_two_documents_that_stay_are_copies(documents):
    found = find_duplicates(documents[:500] + documents[:300])
    staying = [text for n, text in enumerate(documents[:500] + documents[:300]) if found.stays(n)]
    assert len(staying) == len(set(staying))
    assert found.num_exact >= 300
    assert found.num_exact + found.num_near + len(staying) == 800


def test_the_first_of_a_cluster_stays():
    words = " ".join(f"word{n}" for n in range(200))
    texts = ["something else, quite short but long enough", words, words + " more", words, "x"]
    found = find_duplicates(texts)
    assert found.original.tolist() == [0, 1, 1, 1, 4]
    assert found.is_exact.tolist() == [False, False, False, True, False]
    assert (found.num_exact, found.num_near) == (1, 1)


def test_threads_change_nothing(documents):
    alone = find_duplicates(documents[:1500])
    together = find_duplicates(iter(documents[:1500]), workers=4)
    assert alone.original.tolist() == together.original.tolist()
    assert alone.is_exact.tolist() == together.is_exact.tolist()


def test_numpy_and_native_agree(documents, monkeypatch):
    if shingling.native() is None:
        pytest.skip("the native library was not built here")
    texts = [
        *documents[:300],
        "",
        "a b c",
        "ünï cödé wörds are tökens tœo",
        "\ud800 lone surrogate in a text",
    ]
    signer = shingling.Signer(256, seed=3)
    native = [shingling.shingles(text.encode("utf-8", "surrogatepass"), 5) for text in texts]
    signatures = [signer.sign(one) for one in native]
    duplicates = find_duplicates(texts)
    monkeypatch.setattr(shingling, "native", lambda: None)
    numpy = [shingling.shingles(text.encode("utf-8", "surrogatepass"), 5) for text in texts]
    for one, other in zip(native, numpy, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, signature in zip(numpy, signatures, strict=True):
        np.testing.assert_array_equal(signer.sign(one), signature)
    assert find_duplicates(texts).original.tolist() == duplicates.original.tolist()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=" ab_9é(\n", max_size=80), st.integers(1, 6))
def test_shingles_are_the_sets_of_token_runs(text, length):
    data = text.encode()
    tokens = re.findall(rb"[A-Za-z0-9_\x80-\xff]+", data)
    expected = {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}
    assert len(shingling.shingles(data, length)) == len(expected)


def test_signatures_estimate_jaccard_without_bias():
    generator = np.random.default_rng(1)
    signer = shingling.Signer(256, seed=0)
    errors = []
    for _ in range(100):
        pool = np.unique(generator.integers(0, 2**32, 1000, dtype=np.uint32))
        one, other = pool[: len(pool) * 85 // 100], pool[len(pool) * 15 // 100 :]
        estimate = (signer.sign(np.sort(one)) == signer.sign(np.sort(other))).mean()
        errors.append(estimate - 0.7)
    # The mean of 100 estimates with a standard deviation of sqrt(0.7 * 0.3 / 256) = 0.029 each.
    assert abs(np.mean(errors)) < 4 * 0.0029
    assert np.std(errors) < 0.04


def test_a_bucket_of_thousands_is_compared_in_linear_time(monkeypatch):
    compared = 0
    common = shingling.common

    def counted(pool, bounds, one, others):
        nonlocal compared
        compared += len(others)
        return common(pool, bounds, one, others)

    monkeypatch.setattr("starcoder.prepare.dedup.common", counted)
    shared = " ".join(f"shared{n}" for n in range(100))
    texts = [shared + " " + " ".join(f"own{k}x{n}" for n in range(90)) for k in range(2000)]
    found = find_duplicates(texts)  # a Jaccard of 0.34 each: they meet, and none is a duplicate
    assert found.num_near == 0
    assert 0 < compared <= 42 * 64 * 2000


def test_nothing_and_short_documents():
    assert find_duplicates([]).original.tolist() == []
    assert find_duplicates(["", "a", "", "a b"]).original.tolist() == [0, 1, 0, 3]


def test_the_scratch_folder_is_left_empty(tmp_path, documents):
    find_duplicates(documents[:50], scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"similarity": 0.0}, {"num_permutations": 1}, {"shingle_tokens": 0}])
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DedupSettings(**values)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_let_documents_at_the_threshold_meet(threshold):
    settings = DedupSettings(similarity=threshold)
    assert 1 - (1 - threshold**settings.rows) ** settings.num_bands >= 0.99
    assert settings.rows * settings.num_bands <= settings.num_permutations
