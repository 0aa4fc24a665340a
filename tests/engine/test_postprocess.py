"""Each postprocess rule trims what it is named for and nothing else, however the text is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.engine import postprocess
from starcoder.engine.postprocess import AutoClosed, filters
from starcoder.engine.stopping import CursorContext, Stopper
from starcoder.errors import RequestError
from starcoder.request import CompletionRequest, SamplingParams
from tests.engine.splits import cut, through

AFTER = "\n    return total\n\n\nprint(f())\n"
ROW = "    assert f(1) == 2, 'one plus one is two'\n"
ABOVE = "x = first(1)\ny = second(2)\n"

# rule, before the cursor, after it, what the model writes, what is left of it
TRIMMED = [
    ("suffix", "def f():\n    ", AFTER, "total = 1\n    return total", "total = 1"),
    ("suffix", "def f():\n    ", AFTER, "total = 1\n\n    return total\n\n\nprint(", "total = 1"),
    ("suffix", "def f():\n    ", AFTER, "return total", ""),
    ("suffix", "def f():\n", AFTER, "    return total\n", ""),
    ("suffix", "def f():", "\n    return total", "\n    total = 1\n    return total\n", "\n    total = 1"),
    ("suffix", "f(", ", limit=3)\n", "x, limit=3)", "x"),
    ("suffix", "x = ", " + rest(y)\n", "1 + rest(y)", "1"),
    ("prefix", ABOVE, None, ABOVE, ""),
    ("prefix", ABOVE, None, ABOVE.rstrip(), ""),
    ("prefix", f"a\n{ROW}    ", None, ROW.lstrip() + "    more", ""),
    ("loop", "", None, ROW * 3, ROW),
    ("loop", "", None, "begin\n" + ROW * 9, "begin\n" + ROW),
    ("loop", "", None, "x = " + "a.b." * 30, "x = a.b."),
    ("loop", "", None, "ab" * 48, "ab"),
    ("brackets", "f(", ")\n", "x)", "x"),
    ("brackets", "f(", ");\n", "x);", "x"),
    ("brackets", "f(g(", "))\n", "x))", "x"),
    ("brackets", "function f() {\n    ", "\n}\n", "return 1;\n}\n", "return 1;"),
    ("brackets", "class A {\n  f() {\n    ", "\n  }\n}\n", "return [1];\n  }", "return [1];"),
    ("brackets", "x = [", "]", "'(', ')']", "'(', ')'"),
    ("blank", "x = ", None, "1\n\n  ", "1"),
    ("blank", "x = ", "\ny = 2", "1 \n", "1"),
    ("blank", "x = ", "", "\n\t", ""),
]

# likewise, and all of it is left
KEPT = [
    ("suffix", "f(", ")\n", "x)"),
    ("suffix", "if x:\n    ", "\nreturn 1\n", "return 1"),
    ("suffix", "def f():\n    ", AFTER, "if x:\n        return 0\n    return tot"),
    ("suffix", "def f():\n    ", AFTER, "if x:\n    return total\n    y"),
    ("suffix", "def f():\n    ", None, "return total"),
    ("suffix", "def f():\n    ", "\n\n", "return total\n"),
    ("prefix", ABOVE, None, ABOVE.replace("2", "3")),
    ("prefix", ABOVE, None, "x = first(1)\n"),
    ("prefix", "pass\n", None, "pass\n"),
    ("loop", "", None, ROW * 2),
    ("loop", "", None, "# " + "-" * 76 + "\n" + "#" * 80),
    ("loop", "", None, "    }\n" * 5),
    ("brackets", "f(g(", ")\n", "x)"),
    ("brackets", "f(", "\n", "x)"),
    ("brackets", "f(", None, "x)"),
    ("brackets", "", ")}\n", "g(x)"),
    ("brackets", "f(", ")\n", "g(x)"),
    ("brackets", "function f() {\n  f(", "\n}\n", "x);"),
    ("brackets", "f(", ")\n", "')'"),
    ("blank", "x = ", "+ 1", "1 "),
    ("blank", "", "y = 2\n", "x = 1\n"),
]


def run(rule, before, after, pieces):
    """What a rule leaves of the text in pieces, and what it reports."""
    stages = filters((rule,), before, after)
    if not stages:
        return "".join(pieces), ()
    [stage] = stages
    text, _ = through(stage, pieces)
    return text, (stage.name,) if stage.is_trimmed else ()


@pytest.mark.parametrize(("rule", "before", "after", "text", "left"), TRIMMED)
def test_a_rule_trims_what_it_is_named_for(rule, before, after, text, left):
    for pieces in ([text], list(text)):
        assert run(rule, before, after, pieces) == (left, (rule,))


@pytest.mark.parametrize(("rule", "before", "after", "text"), KEPT)
def test_a_rule_leaves_the_rest_alone(rule, before, after, text):
    for pieces in ([text], list(text)):
        assert run(rule, before, after, pieces) == (text, ())


@given(
    rule=st.sampled_from(["loop", "prefix", "suffix", "brackets", "blank"]),
    before=st.text("ab(\n ", max_size=60),
    after=st.none() | st.text("ab)\n }", max_size=60),
    text=st.text("ab()\n }", max_size=150) | st.text("ab\n", max_size=8).map(lambda text: text * 40),
    cuts=st.lists(st.integers(0, 300)),
)
def test_every_split_gives_the_same_beginning(rule, before, after, text, cuts):
    whole = run(rule, before, after, [text])
    assert run(rule, before, after, cut(text, cuts)) == whole
    assert run(rule, before, after, list(text)) == whole
    assert text.startswith(whole[0])
    assert (whole[1] == ()) == (whole[0] == text)


@pytest.mark.parametrize(
    ("rule", "held"), [("suffix", "x = 1\n    return"), ("brackets", "f(x)"), ("blank", "x = 1 ")]
)
def test_only_what_may_be_cut_is_held_back(rule, held):
    [stage] = filters((rule,), "def f():\n    g(", AFTER + ")")
    released = stage.push(held)[0]
    assert (
        held.startswith(released)
        and released == {"suffix": "x = 1", "brackets": "f(x", "blank": "x = 1"}[rule]
    )
    assert stage.push("y")[0] == held[len(released) :] + "y"


@pytest.mark.parametrize(
    ("inserted", "text", "left"),
    [
        (")", "x, g(y)) + 1", "x, g(y)"),
        (")", "':)', x)", "':)', x"),
        ('"', 'a\\"b")', 'a\\"b'),
        ("]", "x", "x"),
        ("\n}", "\n    x = {1}\n}\n", "\n    x = {1}"),
        (">", "u8>()", "u8"),
        ("))", "x))", "x"),
    ],
)
def test_a_completion_ends_where_it_closes_what_the_editor_has_closed(inserted, text, left):
    for pieces in ([text], list(text)):
        stage = AutoClosed(inserted)
        assert through(stage, pieces)[0] == left
        assert stage.is_trimmed == (left != text)


def test_auto_is_every_rule_for_infilling_and_loop_alone_for_continuing():
    names = [[stage.name for stage in filters(("auto",), "x = ", after)] for after in ("\ny", "", None)]
    assert names == [["loop", "prefix", "suffix", "brackets", "blank"], ["loop"], ["loop"]]


class Characters:
    """A decoder whose tokens are code points."""

    def push(self, token, skip=0):
        return chr(token)

    def flush(self):
        return ""


def stream(text, cursor, **params):
    stopper = Stopper(SamplingParams(max_tokens=1000, **params), Characters(), cursor=cursor)
    released = ""
    for char in text:
        outcome = stopper.push(ord(char))
        released += outcome.text
        if outcome.finish_reason:
            return released, outcome.finish_reason, stopper.trimmed
    return released + stopper.end("eos"), "eos", stopper.trimmed


@given(st.text("ab()\n }\r", max_size=60), st.sampled_from(["\n", "\r\n"]))
def test_without_rules_the_text_is_untouched(text, newline):
    expected = text if newline == "\n" else text.replace("\r\n", "\n").replace("\n", "\r\n")
    assert stream(text, CursorContext(before="a(\n", after=")\n", newline=newline)) == (expected, "eos", ())


def test_rules_work_after_scopes_and_stops_and_report_in_order():
    cursor = CursorContext(before="f(", after=")\n", rules=("blank", "brackets"))
    assert stream("x) \ny", cursor, stop_at="line") == ("x", "stop", ("brackets",))
    assert stream("x) ;y", cursor, stop=(";",)) == ("x", "stop", ("brackets",))


def test_windows_line_ends_are_no_obstacle():
    cursor = CursorContext(
        before="def f():\r\n    ", after=AFTER.replace("\n", "\r\n"), newline="\r\n", rules=("auto",)
    )
    assert stream("a = 1\n    b = 2\n    return total\n", cursor) == (
        "a = 1\r\n    b = 2",
        "eos",
        ("suffix",),
    )


def test_a_loop_stops_decoding():
    assert stream(ROW * 50, CursorContext(rules=("loop",))) == (ROW, "stop", ("loop",))


def test_late_text_is_cut_to_whole_lines_before_the_rules():
    stopper = Stopper(
        SamplingParams(max_tokens=100, deadline_ms=1, deadline_at="line"),
        Characters(),
        cursor=CursorContext(after="\nreturn x", rules=("auto",)),
    )
    text = "".join(stopper.push(ord(char)).text for char in "a\nreturn x\nretu") + stopper.end("deadline")
    assert (text, stopper.trimmed) == ("a", ("suffix",))


def test_an_unknown_rule_is_a_request_error():
    with pytest.raises(RequestError, match=r"'tidy'.*brackets"):
        CompletionRequest(prefix="x", postprocess=("tidy",))


def test_every_rule_of_the_request_is_one_stage():
    stages = filters(("loop", "prefix", "suffix", "brackets", "blank"), "x", "\ny")
    assert len(stages) == 5 and postprocess.filters((), "x", "\ny") == []
