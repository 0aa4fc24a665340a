"""Stop strings fire at any character over any token split, and nothing is held back without need."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.engine.stopping import CursorContext, Newlines, Stopper
from starcoder.engine.stopstrings import StopStrings
from starcoder.request import SamplingParams

texts = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def cut(text, cuts):
    """`text` in pieces, cut at these places."""
    places = sorted({0, len(text), *(at % (len(text) + 1) for at in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def first_stop(text, stops):
    """The text before the stop string completed first, and it; the longer of two that end together."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, minus_length, stop = min(ends)
    return text[: end + minus_length], stop


@given(texts, stop_lists, st.lists(st.integers(0, 30)))
def test_stop_strings_fire_the_same_over_every_token_split(text, stops, cuts):
    found, released = None, ""
    finder = StopStrings(stops)
    for piece in cut(text, cuts):
        more, found = finder.push(piece)
        released += more
        if found is not None:
            break
    else:
        released += finder.flush()
    assert (released, found) == first_stop(text, stops)


@given(texts, stop_lists)
def test_text_is_held_back_only_while_it_begins_a_stop_string(text, stops):
    finder, released, seen = StopStrings(stops), "", ""
    for char in text:
        more, found = finder.push(char)
        if found is not None:
            break
        released, seen = released + more, seen + char
        longest = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])), default=0)
        assert released == seen[: len(seen) - longest]


class Bytes:
    """A decoder whose tokens are bytes of UTF-8."""

    def __init__(self):
        self._held = b""

    def push(self, token, skip=0):
        self._held += bytes([token])
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            return ""
        self._held = b""
        return text

    def flush(self):
        text, self._held = self._held.decode(errors="replace"), b""
        return text


def run(text, **options):
    """What a stopper makes of a text that comes byte by byte: text, finish reason, stop, tokens kept."""
    end_ids, cursor = options.pop("end_ids", ()), CursorContext(newline=options.pop("newline", "\n"))
    params = SamplingParams(**{"max_tokens": 1000} | options)
    stopper = Stopper(params, Bytes(), end_ids=end_ids, cursor=cursor)
    released, kept = "", 0
    for token in text.encode():
        outcome = stopper.push(token)
        released, kept = released + outcome.text, kept + outcome.is_kept
        if outcome.finish_reason:
            return released, outcome.finish_reason, outcome.stop, kept
    return released + stopper.end("eos"), None, None, kept


def test_a_stop_string_is_cut_and_its_tokens_stay():
    assert run("return x\n\ndef", stop=("\n\n",)) == ("return x", "stop", "\n\n", 10)


def test_a_stop_string_may_hold_characters_of_several_tokens():
    assert run("a = é # ü", stop=("é #",)) == ("a = ", "stop", "é #", 8)


def test_held_back_text_comes_at_the_end():
    assert run("abc", stop=("cd",)) == ("abc", None, None, 3)
    assert run("abc", stop=("cd",), max_tokens=3) == ("abc", "length", None, 3)


def test_half_a_character_at_the_end_is_one_replacement_character():
    assert run("aé", max_tokens=2) == ("a\N{REPLACEMENT CHARACTER}", "length", None, 2)


def test_end_tokens_belong_to_neither_text_nor_tokens():
    assert run("ab|c", end_ids={ord("|")}) == ("ab", "eos", None, 2)
    assert run("ab|c", stop_ids=(ord("|"),)) == ("ab", "stop", ord("|"), 2)


def test_ignore_eos_ignores_end_tokens_alone():
    assert run("a|b;c", end_ids={ord("|")}, stop_ids=(ord(";"),), ignore_eos=True) == (
        "a|b",
        "stop",
        ord(";"),
        3,
    )


def test_the_token_that_completes_a_stop_string_at_max_tokens_stops():
    assert run("ab", stop=("b",), max_tokens=2) == ("a", "stop", "b", 2)


@given(st.text("a\r\n", max_size=12), st.lists(st.integers(0, 12)))
def test_newlines_are_unified_over_every_split(text, cuts):
    newlines = Newlines()
    assert "".join(map(newlines.unify, cut(text, cuts))) + newlines.flush() == text.replace("\r\n", "\n")


@pytest.mark.parametrize("stop", ["\n\n", "\r\n\r\n"])
def test_crlf_comes_back_and_stop_strings_match_across_it(stop):
    assert run("a\nb\n\nc", newline="\r\n", stop=(stop,))[:3] == ("a\r\nb", "stop", stop)


def test_crlf_of_the_model_is_not_doubled():
    assert run("a\r\nb\n", newline="\r\n")[0] == "a\r\nb\r\n"
