"""A raw prompt means the same however a client has put the sentinels together."""

import pytest

from starcoder.request import CompletionRequest, ContextFile
from starcoder.server.rawprompt import has_sentinels, parse

BOX = ContextFile(path="src/box.py", text="class Box: pass\n")


def fim(prefix="a", suffix="b", **fields):
    return CompletionRequest(prefix=prefix, suffix=suffix, **fields)


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
    "<file_sep><fim_prefix>p.py\na<fim_suffix>b<fim_middle>": fim(path="p.py", repo="r", extras=(BOX,)),
    "<file_sep>src/box.py\nclass Box: pass\n<file_sep><fim_prefix><fim_suffix>b<fim_middle>p.py\na": fim(
        path="p.py", extras=(BOX,)
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
    "<repo_name>r<file_sep>src/box.py\nclass Box: pass\n<file_sep>p.py\na": CompletionRequest(
        prefix="a", path="p.py", repo="r", extras=(BOX,)
    ),
    "<filename>p.py\na": CompletionRequest(prefix="a", path="p.py"),
    "<reponame>r<filename>p.py<gh_stars>0\na": CompletionRequest(prefix="a", path="p.py", repo="r"),
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
    assert has_sentinels(text)
    assert parse(text) is None


@pytest.mark.parametrize("text", ["", "a < b", "<fim>", "fim_prefix", "<file>", "<|eot|>"])
def test_text_without_sentinels_is_no_raw_prompt(text):
    assert not has_sentinels(text)
    assert parse(text) is None


def test_a_malformed_prompt_is_mended_and_a_trusted_one_is_not(start):
    wrong = {"prompt": "<file_sep>p.py\n<fim_prefix>a = <fim_suffix>\nb\n<fim_middle>", "max_tokens": 2}
    with start() as running:
        mended = running.post("/v1/fim/render", wrong).json()
    with start(trust_prompts=True) as running:
        trusted = running.post("/v1/fim/render", wrong).json()
    assert mended["text"] == "<file_sep><fim_prefix>p.py\na = <fim_suffix>\nb\n<fim_middle>"
    assert trusted["text"] == wrong["prompt"]
