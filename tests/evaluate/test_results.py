"""Scores, documents and pages say what the samples say, and a page shows text without obeying it."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from starcoder.evaluate.problems import Problem
from starcoder.evaluate.recipes import named
from starcoder.evaluate.report import page
from starcoder.evaluate.results import About, Result, differ
from starcoder.evaluate.samples import Sample
from starcoder.evaluate.sandbox.verdicts import Isolation, Program, Verdict
from starcoder.request import CompletionRequest

LAYERS = Isolation(reached=("net-namespace", "landlock"), missing=("seccomp",))
KINDS = {"p": "passed", "f": "assertion", "u": "unavailable", "s": "syntax", "w": "unconfirmed"}


def result(
    verdicts, *, model="nano", text="<script>alert(1)</script>", language="python", more=None, **options
):
    """One problem a word, one sample a letter."""
    about = About(task="starter", model=model, recipe=named("greedy"), data_sha256="0" * 64, **options)
    problems = tuple(
        Problem(
            id=f"P/{at}",
            request=CompletionRequest(prefix=f"def f{at}():\n"),
            check=lambda code: Program(code, "", language),
        )
        for at in range(len(verdicts))
    )
    samples = tuple(
        Sample(problem=f"P/{at}", index=index, text=text, verdict=Verdict(KINDS[letter]))
        for at, word in enumerate(verdicts)
        for index, letter in enumerate(word)
    )
    return Result(about=about, problems=problems, samples=samples, isolation=LAYERS, **(more or {}))


def test_pass_at_k_is_over_problems():
    found = result(["ppffffffff", "ffffffffff", "pppppppppp"]).document()
    assert found["pass@1"] == pytest.approx((0.2 + 0 + 1) / 3, abs=1e-6)
    assert found["pass@10"] == pytest.approx(2 / 3, abs=1e-6)
    assert "pass@100" not in found
    assert found["failures"] == {"assertion": 18}
    low, high = found["intervals"]["pass@1"]
    assert low <= found["pass@1"] <= high


def test_what_cannot_run_here_is_no_failure():
    found = result(["p", "u"]).document()
    assert (found["pass@1"], found["num_problems"]) == (1.0, 2)
    nothing = result(["u", "u"])
    assert nothing.is_unavailable and nothing.document()["unavailable"] is True
    assert "pass@1" not in nothing.document()


def test_compared_texts_have_their_means_and_groups():
    about = About(task="my-repo", model="nano", recipe=named("greedy"), data_sha256="")
    problems = tuple(
        Problem(id=name, request=CompletionRequest(prefix="x"), reference="y", group=name[0])
        for name in ("a1", "a2", "b1")
    )
    samples = tuple(
        Sample(problem=name, text="y", scores={"exact_match": value, "edit_similarity": 0.5})
        for name, value in (("a1", 1.0), ("a2", 0.0), ("b1", 1.0))
    )
    found = Result(about=about, problems=problems, samples=samples).document()
    assert (found["exact_match"], found["edit_similarity"]) == (0.666667, 0.5)
    assert found["groups"]["a"] == {"exact_match": 0.5, "edit_similarity": 0.5, "num_problems": 2}
    assert "isolation" not in found


def test_two_results_differ_by_what_flipped():
    difference = differ(result(["p", "f", "f", "p"]), result(["p", "p", "p", "f"])).document()
    assert difference["difference"] == 0.25
    assert (difference["gained"], difference["lost"]) == (["P/1", "P/2"], ["P/3"])
    assert difference["p_value"] == pytest.approx(1.0)


def test_the_fingerprint_is_of_what_moves_a_result():
    first = result(["p"]).about
    assert first.fingerprint == result(["f"]).about.fingerprint
    for change in (
        {"model": "other"},
        {"seed": 1},
        {"limit": 1},
        {"quantize": "int8"},
        {"dtype": "bfloat16"},
    ):
        assert result(["p"], **change).about.fingerprint != first.fingerprint


class Reader(HTMLParser):
    """Counts tags and what they load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [
            (tag, value) for name, value in attributes if name in ("src", "href") and value[:1] != "#"
        ]


def test_the_page_is_whole_and_harmless():
    text = page([result(["p", "f"]), result(["f", "p"], model="<b>other")])
    reader = Reader()
    reader.feed(text)
    assert (reader.loads, reader.tags.count("script"), reader.tags.count("b")) == ([], 1, 0)
    assert reader.tags.count("details") == 2 + 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert 'href="#starter/P/1"' in text and 'id="starter/P/1"' in text
    assert 'data-state="passed flip"' in text and 'data-state="failed flip"' in text
    assert "missing: seccomp" in text


def test_a_long_text_is_cut():
    text = page([result(["f"], text="x" * 100_000)])
    assert len(text) < 20_000


def test_what_is_unconfirmed_is_no_pass_unless_accepted_and_other_languages_have_nothing_else():
    found = result(["p", "w", "f", "f"]).document()
    assert (found["pass@1"], found["unconfirmed@1"]) == (0.25, 0.5)
    assert found["failures"] == {"assertion": 2, "unconfirmed": 1}
    assert result(["p", "w"], more={"accepts_unconfirmed": True}).document()["pass@1"] == 1.0
    other = result(["w", "f"], language="javascript")
    assert other.document()["unconfirmed@1"] == 0.5 and "pass@1" not in other.document()
    assert list(other.per_problem().values()) == [1.0, 0.0]


def test_any_k_can_be_asked_for():
    found = result(["pffff", "ffffp"], more={"ks": (1, 5, 6)}).document()
    assert (found["pass@1"], found["pass@5"]) == (pytest.approx(0.2), 1.0)
    assert "pass@6" not in found


def test_a_result_says_where_and_when_it_was_made():
    found = result(["p"]).document()
    assert {"date", "starcoder", "python", "system", "torch", "revision"} <= found["environment"].keys()
    assert found["isolation"]["holds"]["files"] == ("landlock",)
    assert result(["p"], samples_sha256="ab").document()["recipe"] is None
    assert result(["p"], samples_sha256="ab").about.fingerprint != result(["p"]).about.fingerprint


def test_a_page_tells_part_from_whole_and_shows_what_a_failed_test_saw():
    found = result(["pppp", "pfff", "ffff"])
    seen = Verdict("assertion", "no", 0.0, "add(1, <b>)", "3", "4")
    samples = (*found.samples[:-1], replace(found.samples[-1], text="other", verdict=seen))
    shown = page([replace(found, samples=samples)])
    assert '<span class="good">100.0</span>' in shown
    assert '<span class="part">25.0</span>' in shown and '<span class="bad">0.0</span>' in shown
    assert 'data-kinds="assertion" data-state="partly"' in shown and "assertion (7)" in shown
    assert "add(1, &lt;b&gt;)" in shown and "<th>expected</th><th>found</th>" in shown
