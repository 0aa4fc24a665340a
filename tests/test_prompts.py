"""Prompts: token by token as the family was trained, within any budget, sentinels whole."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from starcoder import prompts
from starcoder.errors import CheckpointError, RequestError
from starcoder.layouts import Sentinels
from starcoder.prompts import Dropped, Prompt, build, split_marker
from starcoder.request import CompletionRequest, ContextFile
from starcoder.tokenizer import Tokenizer
from tests.tiny import SPECIAL_TOKENS, TokenizerStyle, make_tokenizer

STYLES = get_args(TokenizerStyle)

# The hub's own ids. Source: bigcode/santacoder, bigcode/starcoder, bigcode/starcoder2-3b: tokenizer.json.
HUB_IDS: dict[TokenizerStyle, dict[str, int]] = {
    "santacoder": {text: 49152 + rank for rank, text in enumerate(SPECIAL_TOKENS["santacoder"])},
    "starcoder": {text: rank for rank, text in enumerate(SPECIAL_TOKENS["starcoder"])},
    "starcoder2": {text: rank for rank, text in enumerate(SPECIAL_TOKENS["starcoder2"])},
}


class Letters:
    """A vocabulary to read golden lists by: a character's id is 1000 and its code point."""

    def __init__(self, style: TokenizerStyle, *, without: Sequence[str] = ()):
        ids = {text: id for text, id in HUB_IDS[style].items() if text not in without}
        self.sentinels = Sentinels.resolve(ids.get)

    def encode(self, text: str) -> list[int]:
        return [1000 + ord(character) for character in text]


class Triples(Letters):
    """Three characters a token, about as in real code."""

    def encode(self, text: str) -> list[int]:
        return [1000 + len(text[at : at + 3]) for at in range(0, len(text), 3)]


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(id - 1000) if id >= 1000 else "|" for id in ids)


def prompt(style: TokenizerStyle, budget: int = 1000, **fields: Any) -> Prompt:
    return build(CompletionRequest(**fields), Letters(style), budget=budget)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {style: make_tokenizer(style, tmp_path_factory.mktemp(style)) for style in STYLES}


# Layouts. x, z, y are 1120, 1122, 1121; a, b are 1097, 1098; / is 1047 and a line end 1010.

NEIGHBOUR = (ContextFile(path="b", text="z"),)
GOLDEN: list[tuple[TokenizerStyle, dict[str, Any], list[int]]] = [
    ("santacoder", {"layout": "psm"}, [49153, 1120, 49155, 1121, 49154]),
    ("santacoder", {"layout": "spm"}, [49153, 49155, 1121, 49154, 1120]),
    ("santacoder", {"layout": "psm", "path": "a", "extras": NEIGHBOUR}, [49153, 1120, 49155, 1121, 49154]),
    ("starcoder", {"layout": "psm"}, [1, 1120, 3, 1121, 2]),
    ("starcoder", {"layout": "spm"}, [1, 3, 1121, 2, 1120]),
    ("starcoder", {"layout": "psm", "path": "a"}, [1, 5, 1097, 1010, 1120, 3, 1121, 2]),
    ("starcoder", {"layout": "spm", "path": "a"}, [1, 3, 1121, 2, 5, 1097, 1010, 1120]),
    ("starcoder", {"layout": "psm", "repo": "b"}, [1, 18, 1098, 1010, 1120, 3, 1121, 2]),
    (
        "starcoder",
        {"layout": "psm", "repo": "b/b", "path": "a"},
        [1, 18, 1098, 1047, 1098, 5, 1097, 1010, 1120, 3, 1121, 2],
    ),
    ("starcoder", {"suffix": None, "path": "a"}, [5, 1097, 1010, 1120]),
    ("starcoder", {"suffix": None}, [1120]),
    ("starcoder2", {"layout": "psm"}, [1, 1120, 3, 1121, 2]),
    ("starcoder2", {"layout": "spm"}, [1, 3, 1121, 2, 1120]),
    ("starcoder2", {"layout": "psm", "path": "a"}, [6, 1, 1097, 1010, 1120, 3, 1121, 2]),
    ("starcoder2", {"layout": "spm", "path": "a"}, [6, 1, 3, 1121, 2, 1097, 1010, 1120]),
    (
        "starcoder2",
        {"layout": "psm", "path": "a", "repo": "b", "extras": NEIGHBOUR},
        [5, 1098, 6, 1098, 1010, 1122, 6, 1, 1097, 1010, 1120, 3, 1121, 2],
    ),
    (
        "starcoder2",
        {"layout": "spm", "path": "a", "repo": "b", "extras": NEIGHBOUR},
        [5, 1098, 6, 1098, 1010, 1122, 6, 1, 3, 1121, 2, 1097, 1010, 1120],
    ),
    # No path of this file, so none of the others and no repository: half of the training data was so.
    ("starcoder2", {"layout": "psm", "repo": "b", "extras": NEIGHBOUR}, [6, 1122, 6, 1, 1120, 3, 1121, 2]),
    (
        "starcoder2",
        {"suffix": None, "path": "a", "extras": NEIGHBOUR},
        [6, 1098, 1010, 1122, 6, 1097, 1010, 1120],
    ),
    ("starcoder2", {"suffix": None}, [1120]),
]


@pytest.mark.parametrize(("style", "fields", "expected"), GOLDEN)
def test_prompts_equal_their_golden_ids(style, fields, expected):
    assert expected == list(prompt(style, **{"prefix": "x", "suffix": "y"} | fields).tokens)


# The same in words, to run through real tokenizers. R, P, S, Q are filled in below.
WRITTEN: list[tuple[TokenizerStyle, str, str]] = [
    ("santacoder", "psm", "<fim-prefix>{prefix}<fim-suffix>{suffix}<fim-middle>"),
    ("santacoder", "spm", "<fim-prefix><fim-suffix>{suffix}<fim-middle>{prefix}"),
    (
        "starcoder",
        "psm",
        "<fim_prefix><reponame>{repo}<filename>{path}\n{prefix}<fim_suffix>{suffix}<fim_middle>",
    ),
    (
        "starcoder",
        "spm",
        "<fim_prefix><fim_suffix>{suffix}<fim_middle><reponame>{repo}<filename>{path}\n{prefix}",
    ),
    (
        "starcoder2",
        "psm",
        "<repo_name>{repo}<file_sep>{other}\n{code}<file_sep><fim_prefix>{path}\n{prefix}<fim_suffix>{suffix}<fim_middle>",
    ),
    (
        "starcoder2",
        "spm",
        "<repo_name>{repo}<file_sep>{other}\n{code}<file_sep><fim_prefix><fim_suffix>{suffix}<fim_middle>{path}\n{prefix}",
    ),
]


@pytest.mark.parametrize(("style", "layout", "written"), WRITTEN)
@given(prefix=st.text(max_size=20), suffix=st.text(max_size=20))
@example(prefix="\n    return first + sec", suffix="\n\n    class Box")
def test_prompts_encode_as_the_layout_written_out(tokenizers, style, layout, written, prefix, suffix):
    """Parts apart from each other, but path and prefix together: the training text had them in one piece."""
    assume((prefix or suffix) and "<" not in prefix + suffix and "\r" not in prefix + suffix)
    names = {"repo": "me/box", "path": "src/box.py"}
    other = ContextFile(path="src/add.py", text="def add(first, second):\n")
    request = CompletionRequest(prefix=prefix, suffix=suffix, layout=layout, extras=(other,), **names)
    expected = tokenizers[style].encode_with_special(
        written.format(prefix=prefix, suffix=suffix, other=other.path, code=other.text, **names)
    )
    assert expected == list(build(request, tokenizers[style], budget=10_000).tokens)


@pytest.mark.parametrize("style", STYLES)
@given(text=st.lists(st.sampled_from(["<fim_prefix>", "<fim-middle>", "<file_sep>", "a", "\n"])).map("".join))
def test_user_text_brings_no_sentinels(tokenizers, style, text):
    tokenizer = tokenizers[style]
    request = CompletionRequest(
        prefix="x" + text,
        suffix=text + "y",
        path=text,
        repo=text,
        extras=(ContextFile(path=text, text=text),),
    )
    special = {tokenizer.encode_with_special(one)[0] for one in SPECIAL_TOKENS[style]}
    tokens = build(request, tokenizer, budget=10_000).tokens
    expected = 3
    if style == "starcoder":
        expected += 2 * bool(text)
    if style == "starcoder2":
        expected += 3 if text else 2
    assert expected == sum(id in special for id in tokens)


@pytest.mark.parametrize("layout", ["psm", "spm"])
def test_join_fim_ends_where_the_middle_begins(layout):
    joined = Letters("starcoder").sentinels.infill(layout, [7, 8], [9])
    assert joined == {"psm": [1, 7, 8, 3, 9, 2], "spm": [1, 3, 9, 2, 7, 8]}[layout]


# Choosing a layout


@pytest.mark.parametrize("suffix", [None, "", "\n", "  \r\n"])
def test_at_the_end_of_a_file_the_text_is_continued(suffix):
    found = prompt("starcoder", prefix="x", suffix=suffix)
    assert (found.layout, found.tokens) == ("l2r", (1120,))


def test_a_named_layout_infills_at_the_end_of_a_file_too():
    assert prompt("starcoder", prefix="x", suffix="", layout="spm").tokens == (1, 3, 2, 1120)


def test_a_file_can_be_infilled_at_its_start():
    assert prompt("starcoder", prefix="", suffix="y").tokens == (1, 3, 1121, 2)


def test_encoded_prompts_are_used_as_they_are():
    found = prompt("starcoder", tokens=(5, 6, 7), prefix="unused", suffix="unused", budget=3)
    assert (found.tokens, found.layout) == ((5, 6, 7), "l2r")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "empty"),
        ({"suffix": ""}, "empty"),
        ({"suffix": " \n"}, "empty"),
        ({"layout": "psm", "suffix": ""}, "empty"),
        ({"tokens": ()}, "empty"),
        ({"tokens": (1,) * 1001}, "1001 tokens, there is room for 1000"),
        ({"prefix": "x" * 99, "suffix": "y", "budget": 5}, "too little"),
        ({"prefix": "x", "suffix": "y", "budget": 3}, "too little"),
        ({"prefix": "x", "budget": 0}, "too little"),
        ({"prefix": "x", "budget": -5}, "too little"),
    ],
)
def test_impossible_prompts_are_refused(fields, match):
    with pytest.raises(RequestError, match=match) as caught:
        prompt("starcoder", **fields)
    assert caught.value.hint


def test_a_model_without_sentinels_continues_but_does_not_infill():
    vocabulary = Letters("starcoder", without=["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"])
    assert build(CompletionRequest(prefix="x"), vocabulary, budget=9).tokens == (1120,)
    with pytest.raises(RequestError, match="cannot infill"):
        build(CompletionRequest(prefix="x", suffix="y"), vocabulary, budget=9)


# Sentinels


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_read_off_the_vocabulary(style):
    sentinels = Letters(style).sentinels
    assert sentinels.style == style
    assert sentinels.fim_middle == HUB_IDS[style]["<fim-middle>" if style == "santacoder" else "<fim_middle>"]


def test_a_generation_ends_where_another_document_begins():
    ends = {
        "santacoder": set(range(49152, 49157)),
        "starcoder": {0, 1, 2, 3, 4, 5, 6, 7, 10, 15, 18},
        "starcoder2": {0, 1, 2, 3, 4, 5, 6, 7, 8},
    }
    assert ends == {style: Letters(style).sentinels.end_ids for style in STYLES}
    assert prompt("starcoder", prefix="x").end_ids == ends["starcoder"]


@pytest.mark.parametrize("missing", [["<|endoftext|>"], ["<fim_middle>"], ["<fim_prefix>", "<fim_suffix>"]])
def test_missing_sentinels_are_named(missing):
    with pytest.raises(CheckpointError) as caught:
        Letters("starcoder", without=missing)
    assert all(repr(text) in caught.value.message for text in missing)


# Line ends and the marker


def test_windows_line_ends_go_out_of_the_prompt_and_are_remembered():
    windows = prompt(
        "starcoder2", prefix="a\r\nb", suffix="\r\nc", extras=(ContextFile(path="p", text="d\r\n"),)
    )
    unix = prompt("starcoder2", prefix="a\nb", suffix="\nc", extras=(ContextFile(path="p", text="d\n"),))
    assert (windows.newline, unix.newline) == ("\r\n", "\n")
    assert windows.tokens == unix.tokens


def test_a_blank_suffix_still_tells_the_line_end():
    assert prompt("starcoder", prefix="x", suffix="\r\n").newline == "\r\n"


def test_a_stray_windows_line_end_does_not_decide():
    assert prompt("starcoder", prefix="a\nb\nc\r\nd").newline == "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ("ab", None)),
        ("a<FILL_HERE>b", ("a", "b")),
        ("<FILL_HERE>", ("", "")),
        ("a<FILL_HERE>", ("a", "")),
    ],
)
def test_the_marker_splits(text, expected):
    assert split_marker(text) == expected


def test_two_markers_are_refused():
    with pytest.raises(RequestError, match="2 markers"):
        split_marker("a<FILL_HERE>b<FILL_HERE>c")


# Budget


CODE = st.lists(st.text("ab é😀", max_size=12)).map("\n".join)


@given(
    prefix=CODE,
    suffix=st.none() | CODE,
    names=st.sampled_from([{}, {"path": "a.py"}, {"path": "a.py", "repo": "me/box"}]),
    extras=st.lists(st.builds(ContextFile, path=st.just("b.py"), text=CODE), max_size=3).map(tuple),
    layout=st.sampled_from(["psm", "spm"]),
    style=st.sampled_from(STYLES),
    budget=st.integers(1, 120),
)
def test_any_budget_holds_and_keeps_what_is_next_to_the_cursor(
    tokenizers, prefix, suffix, names, extras, layout, style, budget
):
    assume(prefix or suffix)
    tokenizer = tokenizers[style]
    request = CompletionRequest(prefix=prefix, suffix=suffix, extras=extras, layout=layout, **names)
    try:
        found = build(request, tokenizer, budget=budget)
    except RequestError:
        assume(False)
    assert len(found.tokens) <= budget
    parts = parts_of(found, tokenizer)
    # Whole characters, an end of the prefix, a start of the suffix, and what is missing is reported.
    line = len(names.get("path", "")) + 1 if f"{names.get('path')}\n" in parts["prefix"] else 0
    assert prefix[found.dropped.prefix :] == parts["prefix"][line:]
    assert (suffix or "")[: len(suffix or "") - found.dropped.suffix] == parts["suffix"]


def parts_of(found: Prompt, tokenizer: Tokenizer) -> dict[str, str]:
    """Prefix (with its path line) and suffix of a prompt by its sentinels, each exactly once."""
    sentinels, ids = tokenizer.sentinels, list(found.tokens)
    after_tags = [s for s in (sentinels.filename, sentinels.file_sep) if s in ids]
    if found.layout == "l2r":
        start = 1 + max((len(ids) - 1 - ids[::-1].index(tag) for tag in after_tags), default=-1)
        return {"prefix": tokenizer.decode(ids[start:]), "suffix": ""}
    at = {}
    for name in ("fim_prefix", "fim_middle", "fim_suffix"):
        assert ids.count(getattr(sentinels, name)) == 1
        at[name] = ids.index(getattr(sentinels, name))
    order = ("fim_prefix", "fim_suffix", "fim_middle")
    assert tuple(sorted(at, key=lambda name: at[name])) == order
    psm = found.layout == "psm"
    before = ids[at["fim_prefix"] + 1 : at["fim_suffix"]] if psm else ids[at["fim_middle"] + 1 :]
    if sentinels.filename in before:
        before = before[before.index(sentinels.filename) + 1 :]
    after = ids[at["fim_suffix"] + 1 : at["fim_middle"]]
    assert not psm or ids[-1] == sentinels.fim_middle
    return {"prefix": tokenizer.decode(before), "suffix": tokenizer.decode(after)}


LINES = "".join(f"line {number}\n" for number in range(1000, 4000))
HEAD, TAIL = LINES[:15_000], LINES[15_000:]


@pytest.mark.parametrize("layout", ["psm", "spm"])
@pytest.mark.parametrize("budget", [200, 1000, 3000])
def test_a_long_file_fills_most_of_the_budget_with_lines_around_the_cursor(layout, budget):
    request = CompletionRequest(prefix=HEAD, suffix=TAIL, layout=layout)
    found = build(request, Triples("starcoder"), budget=budget)
    kept_prefix, kept_suffix = HEAD[found.dropped.prefix :], TAIL[: len(TAIL) - found.dropped.suffix]
    assert budget * 0.7 <= len(found.tokens) <= budget
    assert len(kept_prefix) >= 0.6 * 3 * budget
    assert len(kept_suffix) >= 0.1 * 3 * budget
    assert kept_prefix.startswith("line ") and kept_suffix.endswith("\n")


def test_the_suffix_goes_before_the_prefix():
    found = prompt("starcoder", prefix=HEAD[-500:], suffix=TAIL, budget=800)
    assert found.dropped.prefix == 0 < found.dropped.suffix
    assert len(found.tokens) > 500 + 0.5 * 300


def test_a_short_suffix_is_kept_whole():
    found = prompt("starcoder", prefix=HEAD, suffix="    return x\n", budget=800)
    assert found.dropped.suffix == 0 < found.dropped.prefix


def test_context_goes_before_the_suffix_and_the_first_files_before_the_last():
    extras = tuple(ContextFile(path=f"{name}.py", text=name * 50) for name in "mnop")
    fields: dict[str, Any] = {"prefix": "x" * 50, "suffix": "y" * 50, "path": "a.py", "extras": extras}
    whole = prompt("starcoder2", **fields)
    assert whole.dropped == Dropped()
    assert [name for name in "mnop" if name * 50 in text_of(whole.tokens)] == list("mnop")
    for fewer, kept in [(1, "nop"), (57, "op"), (120, "p"), (224, "")]:
        found = prompt("starcoder2", **fields, budget=len(whole.tokens) - fewer)
        assert [name for name in "mnop" if name * 50 in text_of(found.tokens)] == list(kept)
        assert found.dropped == Dropped(context=50 * (4 - len(kept)))


def test_one_huge_file_does_not_drive_out_the_others():
    extras = (ContextFile(path="b.py", text="b"), ContextFile(path="huge.py", text="h" * 10_000))
    found = prompt("starcoder2", prefix="x", path="a.py", extras=extras)
    assert (text_of(found.tokens), found.dropped.context) == ("|b.py\nb|a.py\nx", 10_000)


@pytest.mark.parametrize("style", STYLES)
def test_what_has_no_place_counts_as_dropped(style):
    extras = (ContextFile(path="b.py", text="bb"),)
    found = prompt(style, prefix="x", repo="me/r", path="a.py", extras=extras)
    assert found.dropped.context == {"santacoder": 10, "starcoder": 2, "starcoder2": 0}[style]


@pytest.mark.parametrize("style", ["starcoder", "starcoder2"])
def test_a_path_too_long_for_the_budget_is_left_out(style):
    found = prompt(style, prefix="x" * 20, path="p" * 50, budget=60)
    assert (text_of(found.tokens), found.dropped.context) == ("x" * 20, 50)


@pytest.mark.parametrize("size", [10_000, 10_000_000])
def test_one_endless_line_still_fills_the_budget(size):
    found = prompt("starcoder", prefix="x" * size, suffix="y" * size, budget=400)
    assert 300 <= len(found.tokens) <= 400


def test_text_longer_than_the_room_is_not_encoded_as_a_whole():
    """A keystroke in a huge file costs the budget, not the file."""
    counted = Counting(Letters("starcoder"))
    build(CompletionRequest(prefix=HEAD * 100, suffix=TAIL * 100), counted, budget=500)
    assert counted.num_characters < 30 * 500


class Counting:
    def __init__(self, vocabulary: Letters):
        self.sentinels, self._encode, self.num_characters = vocabulary.sentinels, vocabulary.encode, 0

    def encode(self, text: str) -> list[int]:
        self.num_characters += len(text)
        return self._encode(text)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def lost_to_keystrokes(
    style: TokenizerStyle, typed: Callable[[int], CompletionRequest], num: int, budget: int
) -> list[int]:
    """Tokens of the previous prompt's end that each keystroke made useless."""
    runs = [build(typed(n), Letters(style), budget=budget).tokens for n in range(num)]
    return [len(before) - common(before, now) for before, now in pairwise(runs)]


@pytest.mark.parametrize("suffix", [TAIL, TAIL[:300]])
@pytest.mark.parametrize("length", [300, 5000])
def test_typing_in_a_long_file_mostly_appends_to_the_spm_prompt(suffix, length):
    """What a prefix cache lives on: 600 keystrokes over a full budget move the cuts a handful of times."""
    text = HEAD[:length] + LINES[:600]

    def typed(n: int) -> CompletionRequest:
        return CompletionRequest(prefix=text[: length + n], suffix=suffix, path="a.py", layout="spm")

    lost = lost_to_keystrokes("starcoder2", typed, 600, 1000)
    assert sum(n > 0 for n in lost) <= 6


def test_no_prompt_is_wider_than_promised_when_pieces_grow_together():
    """Encodings may be longer joined than apart; the budget holds all the same."""

    class Growing(Letters):
        def encode(self, text: str) -> list[int]:
            return super().encode(text) + [1000] * (len(text) // 50)

    found = build(CompletionRequest(prefix=HEAD, suffix=TAIL), Growing("starcoder"), budget=300)
    assert 200 <= len(found.tokens) <= 300


def test_auto_is_the_one_constant():
    assert prompt("starcoder", prefix="x", suffix="y").layout == prompts.AUTO_LAYOUT


def test_building_imports_no_tokenizer_library():
    source = Path(prompts.__file__).read_text("utf-8")
    assert "import tokenizers" not in source and "import torch" not in source
