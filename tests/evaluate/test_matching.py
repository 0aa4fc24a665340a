"""Edit similarity is Levenshtein's; the other comparisons say what they are named for."""

import random

from hypothesis import given
from hypothesis import strategies as st

from starcoder.evaluate.matching import compared, edit_similarity, identifiers, parses
from starcoder.evaluate.problems import Problem
from starcoder.request import CompletionRequest


def levenshtein(first, second):
    """The table as the textbook fills it."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@given(st.text("abc ", max_size=20), st.text("abc ", max_size=20))
def test_edit_similarity_is_levenshteins(first, second):
    longest = max(len(first), len(second), 1)
    assert edit_similarity(first, second) == 1 - levenshtein(first, second) / longest


def test_long_texts_have_the_same_distance():
    rng = random.Random(0)
    first, second = ("".join(rng.choices("abcdef", k=200)) for _ in range(2))
    assert edit_similarity(first, second) == 1 - levenshtein(first, second) / 200


def test_identifiers_are_the_names_alone():
    assert identifiers("for item in rows: total += item.size * 2") == [
        "item",
        "rows",
        "total",
        "item",
        "size",
    ]


def test_a_completion_is_compared_in_its_place():
    problem = Problem(
        id="a", request=CompletionRequest(prefix="def f(a):\n    ", suffix="\n"), reference="return a + 1"
    )
    assert compared(problem, "return a + 1 ") == {
        "exact_match": 1, "edit_similarity": 1, "identifier_match": 1, "parses": 1,
    }  # fmt: skip
    other = compared(problem, "return a + (")
    assert (other["exact_match"], other["identifier_match"], other["parses"]) == (0, 1, 0)


def test_what_python_refuses_does_not_parse():
    assert [parses(code) for code in ("x = 1\n", "x = = 1", "a\0b", "(" * 500, '"\\d"')] == [
        True, False, False, False, True,
    ]  # fmt: skip
