"""What is learned of each kind of document is exactly what should be: the mask, end-of-text, the layout."""

import random

import pytest
from rich.console import Console

from starcoder.chat import DIALOGUES, ChatTemplate
from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.data_report import colored, report
from starcoder.train.documents import syntax_spans
from starcoder.train.examples import Example, Formats, by_repository, choose
from starcoder.train.settings import FimSettings, FormatSettings
from starcoder.train.shapes import Conversation, Pair, Repository, Row, RowError, recognize
from starcoder.train.vocabulary import add_tokens
from tests.tiny import make_tokenizer

STARCHAT = DIALOGUES["no_system"].source
NO_FIM = FimSettings(rate=0)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("v1"))


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder2", tmp_path_factory.mktemp("v2"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("chat")
    make_tokenizer("starcoder", folder)
    return add_tokens(
        folder, folder, (*DIALOGUES["no_system"].tokens, "<|im_start|>", "<|im_end|>"), STARCHAT
    )


def learned(example: Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(t for t, keep in zip(example.tokens, example.learned, strict=True) if keep)


def make(
    tokenizer: Tokenizer,
    row: Row,
    *,
    fim: FimSettings = NO_FIM,
    room: int = 10_000,
    seed: int = 0,
    chat: str | None = None,
    **settings: object,
) -> list[Example]:
    template = None if chat is None else ChatTemplate(source=chat, tokens={"eos_token": "<|endoftext|>"})
    shape = recognize(row)
    assert shape is not None
    form = choose(
        frozenset({shape.kind}),
        [*row],
        tokenizer,
        fim,
        FormatSettings(**settings),
        template,  # type: ignore[arg-type]
    )
    return form(shape.read(row), room, random.Random(seed))


def pairs(tokenizer: Tokenizer, **settings: object) -> Formats:
    form = FormatSettings(**settings)  # type: ignore[arg-type]
    return choose(frozenset({"pair"}), ["prompt", "completion"], tokenizer, NO_FIM, form, None)


def repository(
    tokenizer: Tokenizer,
    rows: list[Row],
    *,
    fim: FimSettings = NO_FIM,
    room: int = 10_000,
    seed: int = 0,
    **settings: object,
) -> list[Example]:
    """Examples of the files of one repository, which are one document."""
    shape = recognize(rows[0])
    assert shape is not None
    (record,) = by_repository([shape.read(row) for row in rows])
    chosen = FormatSettings(layout="repository", **settings)  # type: ignore[arg-type]
    form = choose(frozenset({"text"}), [*rows[0]], tokenizer, fim, chosen, None)
    return form(record, room, random.Random(seed))


def test_of_a_pair_the_answer_and_one_end_of_text_are_learned(v1: Tokenizer) -> None:
    (example,) = make(v1, {"question": "1 + 1?", "answer": "2"})
    assert v1.decode(example.tokens) == "Question: 1 + 1?\n\nAnswer: 2<|endoftext|>"
    assert learned(example, v1) == " 2<|endoftext|>"
    assert example.tokens.count(v1.sentinels.eos) == 1
    prompt = v1.encode("Question: 1 + 1?\n\nAnswer:")
    assert example.tokens[: len(prompt)] == prompt, "a prompt in use is encoded as the trained one was"


def test_questions_are_learned_where_that_is_asked_for(v1: Tokenizer) -> None:
    (example,) = make(v1, {"question": "a", "answer": "b"}, learn_prompts=True)
    assert all(example.learned)


def test_templates_take_any_columns(v1: Tokenizer) -> None:
    row = {"question": "q", "answer": "a", "context": "c"}
    (example,) = make(v1, row, template="{context}|{question}\n### {answer}\n")
    assert v1.decode(example.tokens) == "c|q\n### a\n<|endoftext|>"
    assert learned(example, v1) == " a\n<|endoftext|>"


def test_text_that_spells_a_sentinel_stays_text(v1: Tokenizer) -> None:
    (example,) = make(v1, {"question": "<|endoftext|>", "answer": "<fim_prefix> {x}"})
    assert example.tokens.count(v1.sentinels.eos) == 1
    assert v1.sentinels.fim_prefix not in example.tokens


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{prompt}", "once each"),
        ("{completion} {prompt}", "once each"),
        ("{prompt} {answers}{completion}", "{answers}"),
        ("{prompt", "not valid"),
    ],
)
def test_templates_that_cannot_be_are_refused(v1: Tokenizer, template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(v1, {"question": "q", "answer": "a"}, template=template)


def test_an_answer_is_cut_to_length_and_a_question_without_one_left_out(v1: Tokenizer) -> None:
    row = {"question": "q", "answer": "word " * 100}
    (example,) = make(v1, row, room=40)
    assert len(example.tokens) == 40
    assert example.is_cut
    assert make(v1, {"question": "q " * 100, "answer": "a"}, room=40) == []
    assert make(v1, {"question": "q", "answer": ""}) == []


# The first exchange that StarChat's own preview of its training data shows has this form.
DIALOGUE = [
    {"role": "system", "content": "Below is a dialogue between a human and an assistant."},
    {"role": "user", "content": "Is it possible to imagine a society without law?"},
    {"role": "assistant", "content": "It is difficult to imagine."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Laws bind\n"},
]


def test_of_a_starchat_dialogue_only_the_assistants_turns_are_learned(chatty: Tokenizer) -> None:
    """The original's `mask_user_labels` masked nothing at all."""
    (example,) = make(chatty, {"messages": DIALOGUE}, chat=STARCHAT)
    assert chatty.decode(example.tokens) == (
        "<|system|>\nBelow is a dialogue between a human and an assistant.<|end|>\n"
        "<|user|>\nIs it possible to imagine a society without law?<|end|>\n"
        "<|assistant|>\nIt is difficult to imagine.<|end|>\n"
        "<|user|>\nWhy?<|end|>\n<|assistant|>\nLaws bind\n<|end|>\n<|endoftext|>"
    )
    assert learned(example, chatty) == "It is difficult to imagine.<|end|>Laws bind\n<|end|><|endoftext|>"
    ids = chatty.special_tokens
    assert example.tokens.count(ids["<|assistant|>"]) == 2
    assert example.tokens.count(chatty.sentinels.eos) == 1


def test_other_templates_and_key_names_are_read(chatty: Tokenizer) -> None:
    talk = [{"from": "human", "value": "Hi <|im_end|>"}, {"from": "gpt", "value": "Yes."}]
    (example,) = make(chatty, {"conversations": talk}, chat=CHATML)
    assert learned(example, chatty) == "Yes.<|im_end|><|endoftext|>"
    assert example.tokens.count(chatty.special_tokens["<|im_end|>"]) == 2, "not the one the user wrote"
    marked = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}",
    )
    assert make(chatty, {"conversations": talk}, chat=marked) == [example]
    own_end = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{{ eos_token }}"
    (ended,) = make(chatty, {"conversations": talk}, chat=own_end)
    assert learned(ended, chatty) == "Yes.<|endoftext|>"


def test_dialogues_nobody_answers_teach_nothing(chatty: Tokenizer) -> None:
    assert make(chatty, {"messages": DIALOGUE[:2]}, chat=STARCHAT) == []
    (example,) = make(chatty, {"messages": DIALOGUE[:4]}, chat=STARCHAT)
    assert learned(example, chatty) == "It is difficult to imagine.<|end|><|endoftext|>"


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        ("hello", STARCHAT, "not JSON"),
        ({"role": "user"}, STARCHAT, "expected a list"),
        ([{"role": "user"}], STARCHAT, "message 1 has no content"),
        (DIALOGUE, "{{ messages[0].content }}", "as it is"),
        (DIALOGUE, "{{ raise_exception('no system') }}", "no system"),
    ],
)
def test_dialogues_that_cannot_be_shown_are_refused(
    chatty: Tokenizer, messages: object, template: str, message: str
) -> None:
    with pytest.raises(RowError, match=message):
        make(chatty, {"messages": messages}, chat=template)


FILE = {"content": "def f():\n    return 1\n", "path": "src/a.py", "repository": "me/mine", "stars": "10-100"}


def test_a_starcoder_file_has_its_tags_in_front(v1: Tokenizer) -> None:
    (example,) = make(v1, FILE, metadata_rate=1.0)
    assert v1.decode(example.tokens) == (
        "<reponame>me/mine<filename>src/a.py<gh_stars>10-100\ndef f():\n    return 1\n<|endoftext|>"
    )
    assert v1.sentinels.filename in example.tokens
    assert all(example.learned)
    (plain,) = make(v1, FILE, metadata_rate=0.0)
    assert v1.decode(plain.tokens) == FILE["content"] + "<|endoftext|>"
    shown = {v1.decode(make(v1, FILE, seed=n)[0].tokens).partition("def")[0] for n in range(60)}
    assert len(shown) == 8, "each tag is shown or not by itself"


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_tags_stand_inside_an_infills_prefix_and_are_never_the_middle(v1: Tokenizer, spm_rate: float) -> None:
    s = v1.sentinels
    for seed in range(30):
        fim = FimSettings(rate=1, spm_rate=spm_rate)
        (example,) = make(v1, FILE, fim=fim, metadata_rate=1.0, seed=seed)
        tokens = example.tokens
        assert tokens[0] == s.fim_prefix
        assert tokens[-1] == s.eos
        tag = tokens.index(s.repo_name)
        assert tag == (tokens.index(s.fim_middle) + 1 if spm_rate else 1)
        assert v1.decode(tokens[tag:]).startswith("<reponame>me/mine<filename>src/a.py<gh_stars>10-100\n")


def test_a_starcoder2_repository_holds_its_files_once(v2: Tokenizer) -> None:
    rows = [FILE, FILE | {"path": "b.py", "content": "x = 1\n"}]
    shown = {v2.decode(repository(v2, rows, seed=n)[0].tokens) for n in range(40)}
    a, b = "def f():\n    return 1\n", "x = 1\n"
    assert shown == {
        f"<repo_name>me/mine<file_sep>src/a.py\n{a}<file_sep>b.py\n{b}<|endoftext|>",
        f"<repo_name>me/mine<file_sep>b.py\n{b}<file_sep>src/a.py\n{a}<|endoftext|>",
        f"<file_sep>{a}<file_sep>{b}<|endoftext|>",
        f"<file_sep>{b}<file_sep>{a}<|endoftext|>",
    }


def test_of_a_starcoder2_infill_the_sentinel_precedes_the_path(v2: Tokenizer) -> None:
    fim = FimSettings(rate=1, spm_rate=0)
    texts = {
        v2.decode(example.tokens)
        for n in range(40)
        for example in repository(v2, [FILE], fim=fim, metadata_rate=1.0, seed=n)
    }
    infills = [text for text in texts if "<fim_prefix>" in text]
    assert len(infills) > 5
    for text in infills:
        assert text.startswith("<repo_name>me/mine<file_sep><fim_prefix>src/a.py\n")
        assert text.endswith("<|endoftext|>")
        assert text.count("<|endoftext|>") == 1


def test_long_repositories_are_cut_into_examples_that_fit(v2: Tokenizer) -> None:
    files = [FILE | {"path": f"{n}.py", "content": f"x_{n} = {n}\n" * 40} for n in range(5)]
    for seed in range(8):
        examples = repository(v2, files, fim=FimSettings(), room=200, seed=seed)
        assert all(1 < len(example.tokens) <= 200 for example in examples)
        text = "".join(v2.decode(example.tokens) for example in examples)
        assert text.count("<|endoftext|>") == 1
        assert [example.is_cut for example in examples] == [True] * (len(examples) - 1) + [False]


def test_repositories_are_refused_where_they_cannot_be(v1: Tokenizer, v2: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no <file_sep>"):
        make(v1, FILE, layout="repository")
    with pytest.raises(ConfigError, match="'repository' and 'path'"):
        make(v2, {"content": "x"}, layout="repository")


def test_syntax_spans_are_whole_pieces_of_python() -> None:
    text = "def größe(x):\n    return 'ü' + x  # 漢\n"
    pieces = {text[a:b] for a, b in syntax_spans(text)}
    assert pieces == {"def größe(x):\n    return 'ü' + x", "return 'ü' + x", "'ü' + x", "'ü'"}
    assert syntax_spans("def broken(:\n") == ()


def test_infills_by_syntax_lack_a_whole_piece(v1: Tokenizer) -> None:
    text = "def add(first, second):\n    total = first + second\n    return total\n"
    whole = {text[a:b] for a, b in syntax_spans(text)}
    fim = FimSettings(rate=1, spm_rate=0, syntax_rate=1)
    middles = set()
    for seed in range(40):
        (example,) = make(v1, {"content": text}, fim=fim, seed=seed)
        middle_at = example.tokens.index(v1.sentinels.fim_middle)
        middles.add(v1.decode(example.tokens[middle_at + 1 : -1]))
    assert middles <= whole
    assert len(middles) > 5


def test_the_report_counts_and_colors_what_is_learned(v1: Tokenizer) -> None:
    records = [Pair(prompt="q" * n, completion="a" * (n % 3)) for n in range(1, 10)]
    found = report(records, pairs(v1), 64, masks=True)
    assert (found.num_documents, found.num_examples, found.num_empty, len(found.samples)) == (9, 6, 3, 3)
    answers = [" " + "a" * (n % 3) for n in range(1, 10) if n % 3]
    assert found.num_learned == sum(len(v1.encode(text)) + 1 for text in answers)
    console = Console(width=200, record=True, force_terminal=True, color_system="standard", quiet=True)
    text = colored(found.samples[0], v1)
    console.print(text)
    assert text.plain == "Question: q\n\nAnswer:⟦ a<|endoftext|>⟧"
    assert [str(span.style) for span in text.spans] == ["dim", "green"]


def test_data_that_is_all_masked_or_not_masked_at_all_is_refused(v1: Tokenizer, chatty: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="nothing would be learned"):
        report([Pair(prompt="q", completion="")], pairs(v1), 64, masks=True)
    bare = pairs(v1, template="{prompt}{completion}")
    with pytest.raises(ConfigError, match="nothing is masked"):
        report([Pair(prompt="", completion="a")], bare, 64, masks=True)
    users = Conversation(messages=tuple(DIALOGUE[:2]))
    template = ChatTemplate(source=STARCHAT)
    talk = choose(frozenset({"messages"}), ["messages"], chatty, NO_FIM, FormatSettings(), template)
    with pytest.raises(ConfigError, match="nothing would be learned"):
        report([users], talk, 64, masks=True)


@pytest.mark.parametrize("kind", ["notebook", "commit", "issue"])
def test_tags_that_prepare_wrote_become_tokens_and_are_not_infilled(v1: Tokenizer, kind: str) -> None:
    text = "<commit_before>a = 1\n<commit_msg>two<commit_after>a = 2\n"
    row = {"content": text, "kind": kind, "path": "p"}
    (example,) = make(v1, row, fim=FimSettings(rate=1), room=200)
    ids = v1.special_tokens
    assert example.tokens[0] == ids["<commit_before>"]
    assert [t for t in example.tokens if t in ids.values()] == [
        *(ids[f"<commit_{name}>"] for name in ("before", "msg", "after")),
        v1.sentinels.eos,
    ]
    assert v1.decode(example.tokens[:-1]) == text
    cut = make(v1, row, fim=FimSettings(rate=1), room=10)
    assert [t for part in cut for t in part.tokens] == example.tokens
    assert all(part.is_cut for part in cut[:-1]) and not cut[-1].is_cut
    (plain,) = make(v1, row | {"kind": "file"}, fim=FimSettings(rate=1), room=400)
    assert ids["<commit_msg>"] not in plain.tokens, "in a file it is text that spells a tag"


def test_commits_stand_beside_a_starcoder2_repository_not_in_it() -> None:
    rows: list[Row] = [
        {"repository": "r", "path": "a.py", "content": "a", "kind": "file"},
        {"repository": "r", "path": "c", "content": "<commit_msg>m", "kind": "commit"},
        {"repository": "r", "path": "b.py", "content": "b"},
    ]
    shape = recognize(rows[0])
    assert shape is not None
    records = [shape.read(row) for row in rows]
    first, second = by_repository(records)
    assert isinstance(first, Repository)
    assert [file.path for file in first.files] == ["a.py", "b.py"]
    assert second is records[1]


def test_a_starcoder2_files_repository_and_separator_come_before_its_infill(v2: Tokenizer) -> None:
    """As a prompt has them: only the path's line is inside the prefix."""
    row = {"content": "x = 1\ny = 2\n" * 4, "repository": "me/r", "path": "a.py"}
    fim = FimSettings(rate=1, spm_rate=0)
    (example,) = make(v2, row, fim=fim, layout="file", metadata_rate=1.0)
    text = v2.decode(example.tokens)
    assert text.startswith("<repo_name>me/r<file_sep><fim_prefix>a.py\n")
