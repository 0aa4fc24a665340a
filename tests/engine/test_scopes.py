"""Completions end with their scope, in Python and brace languages, however the text is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.engine.scopes import Scope, WholeLines, indentation
from starcoder.errors import RequestError
from starcoder.request import SamplingParams
from tests.engine.splits import cut, through

# stop_at, text before the cursor, what belongs to the completion, what the model writes after that
CASES = [
    ("line", "x = ", "1", "\ny = 2\n"),
    ("line", "def f():", "\n    return 1", "\n\n"),
    ("line", "x = ", "  \n\t1", "\n"),
    ("indent", "def f():\n    ", "x = 1\n    if x:\n        y()\n\n    return x", "\n\ndef g():"),
    ("indent", "\tif (a) {\n\t\t", "b();\n\t\tc();", "\n\t}\n\td();"),
    ("indent", "def f():\n", "    return 1", "\nprint(f())"),
    ("block", "def f():\n    ", "x = 1\n    return x", "\n\ndef g():"),
    ("block", "def f(x):", "\n    if x:\n        return 1\n    return 2", "\n\n\nprint(f(1))"),
    ("block", "    if x:", "\n        y()\n    elif z:\n        w()\n    else:\n        v()", "\n    u()"),
    ("block", "    if x:", "\n        y()", "\n    elsewhere()"),
    ("block", "    try:", "\n        y()\n    except E:  # why {\n        pass", "\n\n    z()"),
    ("block", "x = foo(", "\n    1,\n    2,\n)", "\ny = 2"),
    ("block", "  if (x) {", "\n    y();\n  } else {\n    z();\n  }", "\n  w();\n"),
    ("block", "if (x) {", "\n\ty();\n}\nelse {\n\tz();\n}", "\nw();\n"),
    ("block", "while (x)", "\n{\n    y();\n}", "\nz();"),
    ("block", "function f() {\n\t", "a();\n\tb();", "\n}\n\nf();"),
    ("block", "if (x) {", "\n}", "\ny();"),
    ("block", "    do |x|", "\n      y\n    end", "\n    z"),
    ("block", "", "import os", ""),
    ("function", "def f(a):\n    x = 1\n    ", "return x", "\n\ndef g():\n    pass"),
    ("function", "def f(\n    a,\n) -> int:\n    if a:\n        ", "return 1\n    return 2", "\nx = 3"),
    ("function", "import os\n\n", "@cache\ndef f():\n    return 1", "\n\n\ndef g():"),
    (
        "function",
        "class A:\n    def a(self):\n        pass\n\n    ",
        "def b(self):\n        x()",
        "\n\n    def c",
    ),
    ("function", "int main(void) {\n    ", "puts(x);\n    return 0;\n}", "\n\nint other() {"),
    ("function", "int f(void)", " {\n    if (x) {\n        y();\n    }\n    return 0;\n}", "\n\nvoid g"),
    ("function", "func (r *T) Name", "() string {\n\treturn r.name\n}", "\n\nfunc g() {"),
    ("function", "for (i of x) {\n  ", "y(i);\n}\nz();\n", ""),
]


def scope(before, **params):
    return Scope(SamplingParams(**params), before)


@pytest.mark.parametrize(("stop_at", "before", "inside", "beyond"), CASES)
def test_a_completion_ends_with_its_scope(stop_at, before, inside, beyond):
    whole = inside + beyond
    for pieces in ([whole], list(whole)):
        assert through(scope(before, stop_at=stop_at), pieces)[0] == inside


@pytest.mark.parametrize(("stop_at", "before", "inside", "beyond"), CASES)
@given(cuts=st.lists(st.integers(0, 100)), data=st.data())
def test_every_split_of_every_beginning_gives_the_same(stop_at, before, inside, beyond, cuts, data):
    whole = inside + beyond
    text = whole[: data.draw(st.integers(0, len(whole)))]
    got = through(scope(before, stop_at=stop_at), cut(text, cuts))
    assert got == through(scope(before, stop_at=stop_at), [text])
    assert text.startswith(got[0])
    if len(text) <= len(inside):
        assert got[0].rstrip() == text.rstrip() or text[len(got[0]) :].strip().isalpha()


@given(
    text=st.text("ae{} \n\tls:", max_size=40),
    before=st.text("a{:\n\t def", max_size=20),
    stop_at=st.sampled_from(["line", "indent", "block", "function"]),
    min_indent=st.none() | st.integers(0, 4),
    max_lines=st.none() | st.integers(1, 4),
    cuts=st.lists(st.integers(0, 40)),
)
def test_any_text_gives_a_beginning_of_itself_over_every_split(
    text, before, stop_at, min_indent, max_lines, cuts
):
    params = {"stop_at": stop_at, "min_indent": min_indent, "max_lines": max_lines}
    got = through(scope(before, **params), cut(text, cuts))
    assert got == through(scope(before, **params), list(text))
    assert text.startswith(got[0])
    assert max_lines is None or got[0].count("\n") < max_lines


def test_only_blank_lines_and_words_that_may_go_on_are_held_back():
    stage = scope("if x:", stop_at="block")
    released = [stage.push(char)[0] for char in "\n  y\nelse:\n"]
    assert released == ["", "", "", "\n  y", "", "", "", "", "", "\nelse:", ""]


def test_the_first_line_is_never_held_back():
    stage = scope("    ", stop_at="block")
    assert [stage.push(char)[0] for char in "  x ="] == [" ", " ", "x", " ", "="]


def test_min_indent_counts_characters_of_new_lines():
    assert through(scope("", min_indent=2), ["a\n\t\tb\n\n  c\n\td\n\t\te"])[0] == "a\n\t\tb\n\n  c"
    assert through(scope("", min_indent=0), ["a\nb\n"]) == ("a\nb\n", False)


def test_max_lines_counts_the_cursors_line_first():
    assert through(scope("x", max_lines=1), ["\ny"]) == ("", True)
    assert through(scope("x", max_lines=3), ["1\n2\n3\n4"]) == ("1\n2\n3", True)
    assert through(scope("x", max_lines=3), ["1\n2"]) == ("1\n2", False)


def test_tabs_reach_to_the_next_column_of_four():
    assert [indentation(line) for line in ("x", "  x", "\tx", " \tx", "\t x")] == [0, 2, 4, 4, 5]


@pytest.mark.parametrize(
    ("text", "late"), [("a\nb", "a"), ("a\nb\n", "a\nb"), ("\n\nab", "\n\nab"), ("ab", "ab"), ("", "")]
)
def test_late_text_ends_at_its_last_whole_line_if_it_has_one(text, late):
    for is_late, expected in ((True, late), (False, text)):
        for pieces in ([text], list(text)):
            stage = WholeLines()
            stage.is_late = is_late
            assert through(stage, pieces) == (expected, False)


@pytest.mark.parametrize(
    "wrong", [{"stop_at": "word"}, {"min_indent": -1}, {"max_lines": 0}, {"deadline_at": "word"}]
)
def test_what_cannot_be_is_a_request_error(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        SamplingParams(**wrong)
