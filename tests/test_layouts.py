"""Each family's layout as it was trained, written and parsed; a raw prompt means the same in any of them."""

import pytest

from starcoder import layouts
from starcoder.errors import RequestError
from starcoder.layouts import FAMILIES, Cell, ParsedPrompt, Sentinels, Talk, parse
from starcoder.prompts import build
from starcoder.request import CompletionRequest, ContextFile
from tests.tiny import SPECIAL_TOKENS

BOX = ("src/box.py", "class Box: pass\n")


def fim(prefix="a", suffix="b", **fields):
    return ParsedPrompt(prefix=prefix, suffix=suffix, **fields)


KNOWN = {
    # as trained
    "<fim_prefix>a<fim_suffix>b<fim_middle>": fim(),
    "<fim-prefix>a<fim-suffix>b<fim-middle>": fim(),
    "<fim_prefix><fim_suffix>b<fim_middle>a": fim(),
    "<fim_suffix>b<fim_prefix>a<fim_middle>": fim(),
    "<fim_prefix>a<fim_suffix><fim_middle>": fim(suffix=""),
    "<fim_prefix><reponame>r<filename>p.py<gh_stars>10-100\na<fim_suffix>b<fim_middle>": fim(
        path="p.py", repo="r"
    ),
    "<fim_prefix><fim_suffix>b<fim_middle><filename>p.py\na": fim(path="p.py"),
    "<repo_name>r<file_sep>src/box.py\nclass Box: pass\n"
    "<file_sep><fim_prefix>p.py\na<fim_suffix>b<fim_middle>": fim(path="p.py", repo="r", files=(BOX,)),
    "<file_sep>src/box.py\nclass Box: pass\n<file_sep><fim_prefix><fim_suffix>b<fim_middle>p.py\na": fim(
        path="p.py", files=(BOX,)
    ),
    # as clients get it wrong
    "a<fim_suffix>b<fim_middle>": fim(),  # cut from the front (Tabby, TGI's truncate)
    "<fim_prefix>a<fim_suffix>b<fim_middle><|end_of_text|>": fim(),  # Ollama's template
    "<fim_prefix>a<fim_suffix>b<fim_middle>c": fim(prefix="ac"),  # a middle that has begun
    "<file_sep>p.py\n<fim_prefix>a<fim_suffix>b<fim_middle>": fim(path="p.py"),  # path outside
    "<file_sep><fim_prefix>a<fim_suffix>b<fim_middle>": fim(),
    "<filename>p.py\n<fim_prefix>a<fim_suffix>b<fim_middle>": fim(path="p.py"),
    "<reponame>r<filename>p.py<fim_prefix>a<fim_suffix>b<fim_middle>": fim(path="p.py", repo="r"),
    "# a comment\n<fim_prefix>a<fim_suffix>b<fim_middle>": fim(prefix="# a comment\na"),
    # left to right
    "<repo_name>r<file_sep>src/box.py\nclass Box: pass\n<file_sep>p.py\na": ParsedPrompt(
        prefix="a", path="p.py", repo="r", files=(BOX,)
    ),
    "<filename>p.py\na": ParsedPrompt(prefix="a", path="p.py"),
    "<reponame>r<filename>p.py<gh_stars>0\na": ParsedPrompt(prefix="a", path="p.py", repo="r"),
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_layouts_are_taken_apart(text):
    assert parse(text) == KNOWN[text]


@pytest.mark.parametrize(
    "text",
    [
        "<fim_prefix>a",
        "<fim_middle>a",
        "<fim_prefix>a<fim_prefix>b<fim_suffix>c<fim_middle>",
        "<fim_prefix>a<fim_suffix>b",
        "<commit_before>a<commit_msg>b<commit_after>",
        "<jupyter_start><jupyter_code>a",
        "<fim_prefix>a<commit_msg><fim_suffix>b<fim_middle>",
        "a<|endoftext|>b",
    ],
)
def test_other_sentinels_are_left_alone(text):
    assert parse(text) is None


@pytest.mark.parametrize("text", ["", "a < b", "<fim>", "fim_prefix", "<file>", "<|eot|>"])
def test_text_without_sentinels_is_no_raw_prompt(text):
    assert parse(text) is None


# One prompt of each family as its own model card or code writes it: a.py with "a = " before and "\nb" after
# the cursor. Source: `FAMILIES[name].source`.
CARDS = {
    ("starcoder", "psm"): "<fim_prefix><filename>a.py\na = <fim_suffix>\nb<fim_middle>",
    ("starcoder", "spm"): "<fim_prefix><fim_suffix>\nb<fim_middle><filename>a.py\na = ",
    ("starcoder2", "psm"): "<repo_name>me/r<file_sep><fim_prefix>a.py\na = <fim_suffix>\nb<fim_middle>",
    ("starcoder2", "spm"): "<repo_name>me/r<file_sep><fim_prefix><fim_suffix>\nb<fim_middle>a.py\na = ",
    ("santacoder", "psm"): "<fim-prefix>a = <fim-suffix>\nb<fim-middle>",
    ("santacoder", "spm"): "<fim-prefix><fim-suffix>\nb<fim-middle>a = ",
    (
        "qwen2.5-coder",
        "psm",
    ): "<|repo_name|>me/r\n<|file_sep|>a.py\n<|fim_prefix|>a = <|fim_suffix|>\nb<|fim_middle|>",
    ("codellama", "psm"): "<PRE> a =  <SUF>\nb <MID>",
    ("codellama", "spm"): "<PRE> <SUF>\nb <MID> a = ",
    ("codestral", "spm"): "[SUFFIX]\nb[PREFIX]a = ",
    ("deepseek-coder", "psm"): "<\uff5cfim▁begin\uff5c>a = <\uff5cfim▁hole\uff5c>\nb<\uff5cfim▁end\uff5c>",
    ("seed-coder", "spm"): "<[fim-suffix]>\nb<[fim-prefix]>a = <[fim-middle]>",
    ("mellum", "spm"): "<reponame>me/r<filename>a.py\n<fim_suffix>\nb<fim_prefix>a = <fim_middle>",
    ("granite", "psm"): "<fim_prefix>a = <fim_suffix>\nb<fim_middle>",
    ("granite", "spm"): "<fim_prefix><fim_suffix>\nb<fim_middle>a = ",
}


class Spelled:
    """A vocabulary of single characters and the sentinels of one family, to read ids as text again."""

    def __init__(self, family):
        row = FAMILIES[family]
        known = (row.end, row.pre, row.suf, row.mid, row.pad, row.repo, row.file, row.stars)
        self.ids = {text: rank for rank, text in enumerate(dict.fromkeys(t for t in known if t is not None))}
        self.texts = {id: text for text, id in self.ids.items()}
        self.sentinels = Sentinels.resolve(self.ids.get, family=family)

    def encode(self, text):
        return [1000 + ord(character) for character in text]

    def text_of(self, ids):
        return "".join(self.texts[id] if id < 1000 else chr(id - 1000) for id in ids)


def built(vocabulary, **fields):
    return vocabulary.text_of(build(CompletionRequest(**fields), vocabulary, budget=200).tokens)


@pytest.mark.parametrize(("family", "order"), CARDS)
def test_infills_are_written_as_the_family_was_trained(family, order):
    # StarCoder's repository tag is written where it is given: the card has the path alone.
    repo = None if family == "starcoder" else "me/r"
    found = built(Spelled(family), prefix="a = ", suffix="\nb", path="a.py", repo=repo, layout=order)
    expected = CARDS[family, order]
    if family == "codellama":  # the blanks next to its sentinels are part of them
        expected = expected.replace("<PRE> ", "<PRE>").replace(" <SUF>", "<SUF>").replace(" <MID> ", "<MID>")
        expected = expected.replace(" <MID>", "<MID>")
    assert found == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_takes_an_order_that_the_family_knows(family):
    fields = {"prefix": "a = ", "suffix": "\nb", "path": "a.py"}
    known = [order for name, order in CARDS if name == family]
    assert built(Spelled(family), **fields) in [built(Spelled(family), **fields, layout=o) for o in known]
    for order in {"psm", "spm"} - {*known}:
        with pytest.raises(RequestError, match="do not infill in the order"):
            built(Spelled(family), **fields, layout=order)


@pytest.mark.parametrize(("family", "order"), CARDS)
def test_prompts_of_any_family_are_taken_apart(family, order):
    row, text = FAMILIES[family], CARDS[family, order]
    names_file, names_repo = "a.py" in text, "me/r" in text
    expected = ParsedPrompt(
        prefix="a = ", suffix="\nb", path="a.py" if names_file else None, repo="me/r" if names_repo else None
    )
    assert parse(text) == expected
    assert parse(f"{row.begin or ''}{text}") == expected


@pytest.mark.parametrize("family", ["qwen2.5-coder", "mellum", "starcoder2"])
def test_other_files_of_the_repository_are_written_and_parsed(family):
    vocabulary = Spelled(family)
    files = (("b.py", "x = 1\n"), ("c/d.py", "y = 2\n"))
    extras = tuple(ContextFile(path=path, text=text) for path, text in files)
    for suffix in ("\nb", None):
        text = built(vocabulary, prefix="a = ", suffix=suffix, path="a.py", repo="me/r", extras=extras)
        assert parse(text) == ParsedPrompt(
            prefix="a = ", suffix=suffix, path="a.py", repo="me/r", files=files
        )


def test_files_that_must_end_in_a_line_break_get_one():
    text = built(
        Spelled("qwen2.5-coder"), prefix="a", path="a.py", extras=(ContextFile(path="b.py", text="x"),)
    )
    assert text == "<|file_sep|>b.py\nx\n<|file_sep|>a.py\na"


@pytest.mark.parametrize(
    "text",
    [
        "<pre> <PRE> html </PRE> <MID>",
        "usage: tool [PREFIX] [SUFFIX]",
        "say <PRE> a <SUF>b <MID>",
        "<[fim-prefix]>a",
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|file_sep|>c",
    ],
)
def test_text_that_only_mentions_sentinels_is_not_taken_apart(text):
    assert parse(text) is None


def test_sentinels_of_another_family_in_the_code_stay_text():
    assert parse("<fim_prefix>p = '<|fim_prefix|>'<fim_suffix>'<PRE>'<fim_middle>") == ParsedPrompt(
        prefix="p = '<|fim_prefix|>'", suffix="'<PRE>'"
    )


@pytest.mark.parametrize("family", ["santacoder", "starcoder", "starcoder2", "qwen2.5-coder", "codestral"])
def test_the_family_is_recognized_by_its_vocabulary(family):
    assert Sentinels.resolve(Spelled(family).ids.get).style == family


def test_families_hold_the_hubs_special_tokens():
    for family in ("santacoder", "starcoder"):
        assert FAMILIES[family].special_tokens == SPECIAL_TOKENS[family]
    assert {*SPECIAL_TOKENS["starcoder2"]} <= {*FAMILIES["starcoder2"].special_tokens}
    assert len(FAMILIES["starcoder2"].special_tokens) == 38


def test_commits_notebooks_and_issues_come_back():
    commit = ("old\n", "Change it", "new\n")
    assert layouts.parse_commit(layouts.write_commit(*commit)) == commit
    cells = (Cell(text="# T"), Cell(text="1+1", output="2"), Cell(text="pass", output=""))
    written = layouts.write_notebook(cells)
    assert written.endswith("<jupyter_code>pass<jupyter_output><empty_output>")
    assert layouts.parse_notebook(written) == cells
    talk = Talk(posts=("Title: T\nusername_0: hi", "username_1: yes"), is_closed=True)
    assert layouts.parse_issue(layouts.write_issue(talk)) == talk
    for read in (layouts.parse_commit, layouts.parse_notebook, layouts.parse_issue):
        assert read("x = 1") is None
