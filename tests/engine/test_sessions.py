"""Typing appends: a keystroke computes what was typed, and nothing at all where the last answer said it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import starcoder.engine.engine
from starcoder.engine.engine import Engine
from starcoder.engine.postprocess import AutoClosed
from starcoder.engine.sessions import Answer, SessionPlan, Sessions
from starcoder.engine.settings import EngineSettings
from starcoder.errors import ConfigError
from starcoder.request import CompletionRequest, SamplingParams, collect
from tests.engine.small import make_engine
from tests.engine.small import make_model as make_small_model
from tests.engine.splits import through
from tests.tiny import make_model, make_tokenizer

torch.set_num_threads(1)

SOURCE = Path(starcoder.engine.engine.__file__).read_text("utf-8")
TYPED = "    tables = [open(name, encoding='utf-8') for name in sorted(names) if name.startswith(prefix)]\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def network():
    return make_model("bigcode", n_positions=4096)


def ask(prefix, suffix, *, session="editor", **fields):
    sampling = SamplingParams(**{"max_tokens": 4, "ignore_eos": True} | fields.pop("sampling", {}))
    # Unhealed: the counts are of a vocabulary of 320, where words have many tokens; see test_healing.py.
    fields = {"heal": False} | fields
    return CompletionRequest(prefix=prefix, suffix=suffix, session=session, sampling=sampling, **fields)


def keystrokes(tokenizer, num_tokens=3):
    """What is typed up to each keystroke, `num_tokens` tokens at a time, 40 times."""
    ids = tokenizer.encode(TYPED * 3)
    return [tokenizer.decode(ids[: num_tokens * n]) for n in range(41)]


def replay(engine, requests):
    """Prompt tokens that each request computed; the first one of the session apart."""
    completions = [collect(engine.generate([request]))["0"][0] for request in requests]
    return [one.usage.prompt_tokens - one.usage.cached_tokens for one in completions][1:]


def num_common(left, right):
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def typed_tokens(tokenizer, requests):
    """Tokens of each request's prefix that its forerunner's had not: a few more than were typed

    where a word goes on, since its first tokens change.
    """
    ids = [tokenizer.encode(request.prefix) for request in requests]
    return [len(after) - num_common(before, after) for before, after in pairwise(ids)]


def assert_only_typing_is_computed(engine, requests, num_typed):
    num_computed = replay(engine, requests)
    assert len(num_computed) == 40
    assert all(num <= k + 1 for num, k in zip(num_computed, num_typed, strict=True))
    assert max(num_typed) <= 6 and sum(num_computed) <= 4 * 40


def test_a_keystroke_of_k_tokens_computes_at_most_k_plus_1(network, tokenizer):
    middle = SOURCE.index("    def add(")
    head, tail = SOURCE[middle - 3000 : middle], SOURCE[middle : middle + 400]
    requests = [ask(head + typed, tail, path="engine.py") for typed in keystrokes(tokenizer)]
    typed = typed_tokens(tokenizer, requests)
    assert_only_typing_is_computed(Engine(network, tokenizer), requests, typed)


def test_a_bracket_that_the_editor_closes_costs_nothing(network, tokenizer):
    head, tail = SOURCE[:3000], SOURCE[3000:3400]
    typed = keystrokes(tokenizer)
    closers = {"[": "]", "(": ")", "{": "}", "'": "'"}

    def closed(text):
        """What an editor has closed: the brackets and the quote that are open in the line typed so far."""
        open_ = []
        for char in text.rpartition("\n")[2]:
            if open_ and char == open_[-1]:
                open_.pop()
            elif char in closers and "'" not in open_:
                open_.append(closers[char])
        return "".join(reversed(open_))

    requests = [ask(head + text, closed(text) + tail) for text in typed]
    assert len({request.suffix for request in requests}) > 3
    typed = typed_tokens(tokenizer, requests)
    assert_only_typing_is_computed(Engine(network, tokenizer), requests, typed)


def test_a_window_that_moves_along_costs_nothing_until_it_has_gone_far(network, tokenizer):
    text = SOURCE * 2
    at, requests, whole = 4000, [], []
    for typed in keystrokes(tokenizer):
        whole.append(ask(text[:at] + typed, None))
        requests.append(ask(whole[-1].prefix[-2000:], text[at : at + 600 - len(typed)]))
    typed = typed_tokens(tokenizer, whole)
    assert_only_typing_is_computed(Engine(network, tokenizer), requests, typed)


def test_a_file_beyond_the_context_moves_its_cuts_a_few_times_at_most(tokenizer):
    network = make_model("bigcode", n_positions=1024)
    requests = [ask(SOURCE + typed, SOURCE) for typed in keystrokes(tokenizer)]
    num_computed = replay(Engine(network, tokenizer), requests)
    assert sum(num > 4 for num in num_computed) <= 3


def test_without_a_session_the_layout_is_the_requests_own(network, tokenizer):
    """PSM puts the suffix behind what is typed, so that each keystroke computes it: what sessions avoid."""
    requests = [
        ask(SOURCE[:600] + typed, SOURCE[600:900], session=None, layout="psm") for typed in ("", "x", "xy")
    ]
    assert min(replay(Engine(network, tokenizer), requests)) > 50


def plan_of(prefix, suffix, **fields):
    return SessionPlan(request=CompletionRequest(prefix=prefix, suffix=suffix, session="a", **fields))


def sessions_with(prefix, suffix, **fields):
    sessions = Sessions(8)
    sessions.asked(plan_of(prefix, suffix, **fields))
    return sessions


@pytest.mark.parametrize(
    ("old", "new", "kept", "inserted"),
    [
        ("\nz", ")\nz", "\nz", ")"),
        ("\nz", '")\nz', "\nz", '")'),
        ("\nz", "\n    }\nz", "\nz", "\n    }"),
        ("\nz", "\nz", "\nz", ""),
        ("\nz", "\n\nz", "\n\nz", ""),
        ("\nz", "x)\nz", "x)\nz", ""),
        (")\nz", "\nz", "\nz", ""),
        ("\nz", ")\ny", ")\ny", ""),
        ("\n" + "z" * 300, ")\n" + "z" * 290, "\n" + "z" * 300, ")"),
        ("\n" + "z" * 300, "\n" + "z" * 310, "\n" + "z" * 300, ""),
    ],
)
def test_a_suffix_stays_if_only_closing_text_was_inserted(old, new, kept, inserted):
    plan = sessions_with("x", old).plan(CompletionRequest(prefix="x(", suffix=new, session="a"))
    assert (plan.request.suffix, plan.inserted, plan.request.layout) == (kept, inserted, "spm")


@pytest.mark.parametrize("fields", [{"path": "b.py"}, {"repo": "other"}])
def test_another_file_starts_anew(fields):
    plan = sessions_with("x", "\nz").plan(
        CompletionRequest(prefix="x(", suffix=")\nz", session="a", **fields)
    )
    assert plan.request.suffix == ")\nz"


def test_a_named_layout_and_a_blank_suffix_stay_as_they_are():
    sessions = Sessions(8)
    for fields in ({"suffix": "\nz", "layout": "psm"}, {"suffix": "\n"}, {"suffix": None}):
        request = CompletionRequest(prefix="x", session="a", **fields)
        assert sessions.plan(request).request == request


def test_a_closing_bracket_at_the_end_of_a_file_stays_left_to_right():
    plan = sessions_with("f", "\n").plan(CompletionRequest(prefix="f(", suffix=")\n", session="a"))
    assert (plan.request.suffix, plan.request.layout) == ("\n", "auto")


def test_a_window_that_has_moved_by_half_starts_anew():
    text = "".join(f"line {n}\n" for n in range(400))
    sessions = sessions_with(text[:2000], None)
    near = CompletionRequest(prefix=text[500:2100], session="a")
    far = CompletionRequest(prefix=text[1000:2200], session="a")
    assert sessions.plan(near).request.prefix == text[:2100]
    assert sessions.plan(far).request.prefix == text[1000:2200]


def test_the_least_recently_used_session_is_forgotten():
    sessions = Sessions(2)
    for name in ("a", "b", "a", "c"):
        request = CompletionRequest(prefix="x", suffix="\nz", session=name)
        sessions.asked(SessionPlan(request=request))
    inserted = [
        sessions.plan(CompletionRequest(prefix="x(", suffix=")\nz", session=name)).inserted for name in "abc"
    ]
    assert inserted == [")", "", ")"]


def left(prefix, suffix="\nz", *, text="print(x)", old=("", "\nz"), temperature=0.0, **fields):
    """What is repeated of `text`, which answered the plan `old`, for this request."""
    sampling = SamplingParams(temperature=temperature)
    plan = plan_of(*old, layout="spm", sampling=sampling)
    sessions = Sessions(8)
    sessions.asked(plan)
    sessions.answered(Answer(plan=plan, text=text, finish_reason="eos", prompt_tokens=3))
    request = CompletionRequest(
        prefix=prefix, suffix=suffix, session="a", **{"sampling": sampling, "layout": "spm"} | fields
    )
    answer = sessions.typed_through(sessions.plan(request))
    return None if answer is None else (answer.text, answer.trimmed)


def test_what_is_left_of_the_last_answer_is_repeated():
    assert left("pr") == ("int(x)", ())
    assert left("") == ("print(x)", ())
    assert left("pri", temperature=1.0) == ("nt(x)", ())
    assert left("print(", ")\nz") == ("x", ("autoclosed",))
    assert left("print", ")\nz", text="print(x).y") == ("(x).y", ())


def test_everything_else_goes_to_the_model():
    assert left("pro") is None
    assert left("print(x)") is None
    assert left("", temperature=1.0) is None
    assert left("pr", "\ny") is None
    assert left("pr", old=("prin", "\nz")) is None
    assert left("print(x", ")\nz") is None
    assert left("pr", sampling=SamplingParams(max_tokens=5)) is None
    assert left("pr", sampling=SamplingParams(n=2)) is None
    assert left("pr", postprocess=("auto",)) is None


LETTERS = "abcdefgh"


def small_ask(prefix, **sampling):
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | sampling)
    return CompletionRequest(prefix=prefix, session="editor", sampling=params)


def test_typed_through_answers_equal_what_the_model_would_say_and_run_nothing():
    model = make_small_model()
    engine = make_engine(model)
    [[whole]] = collect(engine.generate([small_ask(LETTERS)])).values()
    num_steps = engine.stats().num_steps
    for length in range(1, 5):
        request = small_ask(LETTERS + whole.text[:length])
        [[got]] = collect(engine.generate([request])).values()
        assert (got.text, got.finish_reason) == (whole.text[length:], whole.finish_reason)
        assert got.usage.prompt_tokens == got.usage.cached_tokens == len(LETTERS) + length
        fresh = replace(request, session=None)
        [[alone]] = collect(make_engine(model).generate([fresh])).values()
        assert alone.text.startswith(got.text)
    assert engine.stats().num_steps == num_steps and engine.is_idle


def test_a_typed_through_answer_comes_from_step_and_ends_the_older_request():
    engine = make_engine(make_small_model())
    engine.add(small_ask(LETTERS))
    chunks = []
    while not engine.is_idle:
        chunks += engine.step()
    [[whole]] = collect(chunks).values()
    older = engine.add(small_ask(LETTERS + "!"))
    newer = engine.add(small_ask(LETTERS + whole.text[:2]))
    assert not engine.is_idle
    done = collect(engine.step())
    assert done[older][0].finish_reason == "abort"
    assert done[newer][0].text == whole.text[2:] and engine.is_idle


def test_an_aborted_text_is_not_repeated():
    engine = make_engine(make_small_model())
    first = engine.add(small_ask(LETTERS))
    [text] = [chunk.text for _ in range(2) for chunk in engine.step()][:1]
    engine.abort(first)
    engine.step()
    num_steps = engine.stats().num_steps
    collect(engine.generate([small_ask(LETTERS + text)]))
    assert engine.stats().num_steps > num_steps


def test_a_completion_ends_where_the_model_closes_what_the_editor_closed(network, tokenizer):
    """The model does not see the inserted bracket, so it may write it; the text ends before that."""
    engine = Engine(network, tokenizer)
    sampling = {"max_tokens": 60}
    unseen = ask("x = f(", "\nreturn x", session=None, layout="spm", sampling=sampling)
    [[free]] = collect(engine.generate([unseen])).values()
    closer = next(char for char in ")]}>\"'" if through(AutoClosed(char), [free.text])[1])
    collect(engine.generate([ask("x = f", "\nreturn x")]))
    [[got]] = collect(engine.generate([ask("x = f(", f"{closer}\nreturn x", sampling=sampling)])).values()
    text, _ = through(AutoClosed(closer), [free.text])
    assert (got.text, got.trimmed, got.finish_reason) == (text, ("autoclosed",), "stop")


def test_the_number_of_sessions_is_bounded():
    with pytest.raises(ConfigError, match="max_sessions is 0"):
        EngineSettings(max_sessions=0)
