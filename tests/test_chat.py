"""Chat templates: rendered as transformers does, encoded so that text forges nothing, answers marked."""

import json

import pytest

from starcoder.chat import DIALOGUES, ChatTemplate, own_source
from starcoder.errors import ConfigError, RequestError
from starcoder.tokenizer import Tokenizer
from starcoder.train.vocabulary import add_tokens
from tests.tiny import make_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Line breaks around the blocks: what trim_blocks and lstrip_blocks do to them matters.
MARKED = (
    "{% for message in messages %}\n  {%- if message.role == 'user' %}\n<|im_start|>user\n"
    "{{ message.content }}<|im_end|>\n  {% else %}\n<|im_start|>{{ message.role }}\n"
    "{% generation %}\n{{ message.content }}<|im_end|>\n{% endgeneration %}\n  {% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools is not none %}<|im_start|>system\n{{ tools | tojson(indent=2) }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}"
    "({{ call.function.arguments | tojson }})"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "plain": CHATML,
    "marked for training": MARKED,
    "tools": TOOLS,
    "tools as such": "{{ tools }} {{ documents }} {{ unknown }}!",
    "loop controls": "{% for m in messages %}{{ m }}{% if 1 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = 7 %}{% endfor %}{{ x.n }}",
    "json": "{{ messages | tojson }} {{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true) }}",
    "names": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}",
    "time": "{{ strftime_now('%Y') }}",
    "dialogue": DIALOGUES["default"].source,
}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Add. "},
    {"role": "assistant", "content": "1 + 1"},
    {"role": "user", "content": "More\u2028<b>é</b>"},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}
TOOL_TURNS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    make_tokenizer("starcoder", folder)
    add_tokens(folder, folder, (*DIALOGUES["no_system"].tokens, "<|im_start|>", "<|im_end|>"), None)
    names = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": {"content": "<fim_pad>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def found(folder, tokenizer, source):
    path = folder / "given.jinja"
    path.write_text(source)
    return ChatTemplate.find(str(path), folder, tokenizer)


def oracle(tokenizer, source):
    from transformers import PreTrainedTokenizerFast

    special = [{"content": text, "id": id} for text, id in tokenizer.special_tokens.items()]
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._backend,
        eos_token="<|endoftext|>",
        pad_token="<fim_pad>",
        chat_template=source,
    )
    theirs.add_special_tokens({"additional_special_tokens": [one["content"] for one in special]})
    return theirs


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["", "with tools"])
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(folder, tokenizer, name, tools, prompt):
    source = TEMPLATES[name]
    ours = found(folder, tokenizer, source).render(TURNS, tools=tools, add_generation_prompt=prompt)
    theirs = oracle(tokenizer, source).apply_chat_template(
        TURNS, tools=tools, tokenize=False, add_generation_prompt=prompt
    )
    assert ours == theirs


def learned(tokenizer, template, turns, tools=None):
    ids, mask = template.encode_dialogue(turns, tokenizer, tools=tools)
    assert len(ids) == len(mask)
    return tokenizer.decode(id for id, keep in zip(ids, mask, strict=True) if keep)


def test_the_templates_own_marks_are_those_of_transformers(folder, tokenizer):
    turns = [turn | {"content": turn["content"].strip()} for turn in TURNS[1:3] * 2]
    template = found(folder, tokenizer, MARKED)
    text = template.render(turns, mark="¦")
    pieces = text.split("¦")
    theirs = oracle(tokenizer, MARKED).apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    masked = [id for id, keep in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if keep]
    assert oracle(tokenizer, MARKED).decode(masked) == "".join(pieces[1::2])
    assert learned(tokenizer, template, turns) == "".join(pieces[1::2]) + "<|endoftext|>"


def test_answers_are_learned_up_to_the_token_that_ends_their_turn(folder, tokenizer):
    for source in (CHATML, TOOLS):
        assert learned(tokenizer, found(folder, tokenizer, source), TURNS) == "1 + 1<|im_end|><|endoftext|>"
    content = "{{ message.content | trim }}"
    marked = f"{{% if message.role == 'assistant' %}}{{% generation %}}{content}{{% endgeneration %}}"
    bare = CHATML.replace(content, f"{marked}{{% else %}}{content}{{% endif %}}")
    assert learned(tokenizer, found(folder, tokenizer, bare), TURNS) == "1 + 1<|im_end|><|endoftext|>"
    words = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert learned(tokenizer, found(folder, tokenizer, words), TURNS) == "1 + 1<|endoftext|>"


def test_calls_of_tools_are_learned_in_the_templates_words(folder, tokenizer):
    told = learned(tokenizer, found(folder, tokenizer, TOOLS), TOOL_TURNS, [WEATHER])
    assert told == 'weather({"city": "Graz"})<|im_end|>Sunny.<|im_end|><|endoftext|>'
    as_text = [
        {**TOOL_TURNS[1], "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Graz"}'}}]}
    ]
    told = learned(tokenizer, found(folder, tokenizer, TOOLS), [TOOL_TURNS[0], *as_text, *TOOL_TURNS[2:]])
    assert told == 'weather({"city": "Graz"})<|im_end|>Sunny.<|im_end|><|endoftext|>'


def test_calls_of_tools_become_text_where_the_template_has_no_words_for_them(folder, tokenizer):
    template = ChatTemplate.find("no_system", folder, tokenizer)
    told = learned(tokenizer, template, TOOL_TURNS, [WEATHER])
    assert told == '{"name": "weather", "arguments": {"city": "Graz"}}<|end|>Sunny.<|end|><|endoftext|>'
    ids, _ = template.encode_dialogue(TOOL_TURNS, tokenizer, tools=[WEATHER])
    text = tokenizer.decode(ids)
    assert text.startswith("<|system|>\nYou can call these functions:\n" + json.dumps(WEATHER["function"]))
    assert "<|user|>\nResult of the function:\nsunny<|end|>" in text


def test_a_template_that_changes_earlier_turns_needs_marks(folder, tokenizer):
    source = TOOLS.replace("{{ message.content or '' }}", "{{ loop.last and message.content or '' }}")
    with pytest.raises(RequestError, match="changes earlier turns") as caught:
        found(folder, tokenizer, source).encode_dialogue(TOOL_TURNS, tokenizer)
    assert "generation" in caught.value.hint


@pytest.mark.parametrize("source", [CHATML, TOOLS, MARKED, DIALOGUES["alpaca"].source])
@pytest.mark.parametrize(
    "attack",
    ["<|endoftext|>", "x<fim_prefix>y", "<|im_end|><|im_end|>", "\U000f0000\U000f00000", "<|end|>\ue000"],
)
def test_what_a_message_or_tool_spells_never_becomes_a_special_token(folder, tokenizer, source, attack):
    template = found(folder, tokenizer, source)
    special = {*tokenizer.special_tokens.values()}

    def specials(text):
        turns = [
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"function": {"name": "f", "arguments": {text: text}}}],
            },
            {"role": "user", "content": text},
        ]
        tools = [{"type": "function", "function": {"name": "f", "description": text}}]
        prompt = template.encode_prompt(turns, tokenizer, tools=tools)
        whole, _ = template.encode_dialogue(turns, tokenizer, tools=tools)
        assert text == "hello" or attack in tokenizer.decode(prompt)
        return [[id for id in ids if id in special] for ids in (prompt, whole)]

    assert specials(attack) == specials("hello")


def test_a_role_forges_no_token(folder, tokenizer):
    template = ChatTemplate.find("no_system", folder, tokenizer)
    ids = template.encode_prompt([{"role": "end", "content": "x"}], tokenizer)
    assert ids.count(tokenizer.special_tokens["<|end|>"]) == 2  # of the system message and of the turn


def test_a_template_that_looks_into_answers_shows_what_transformers_shows(folder, tokenizer):
    source = (
        "{% for m in messages %}"
        "{{ m.content.split('<|end|>')[-1] if m.role == 'assistant' else m.content }}\n"
        "{% endfor %}"
    )
    turns = [
        {"role": "assistant", "content": "thoughts<|end|>answer"},
        {"role": "user", "content": "<|end|>"},
    ]
    ids = found(folder, tokenizer, source).encode_prompt(turns, tokenizer)
    assert tokenizer.decode(ids) == "answer\n<|end|>\n"
    assert tokenizer.special_tokens["<|end|>"] not in ids


def test_messages_without_special_tokens_are_encoded_as_a_whole(folder, tokenizer):
    template = found(folder, tokenizer, CHATML)
    text = template.render(TURNS, add_generation_prompt=True)
    assert template.encode_prompt(TURNS, tokenizer) == tokenizer.encode_with_special(text)


def test_starchats_dialogue_ends_where_the_assistant_begins(folder, tokenizer):
    def render(name, turns):
        return ChatTemplate.find(name, folder, tokenizer).render(turns, add_generation_prompt=True)

    expected = "<|system|>\n<|end|>\n<|user|>\n Add. <|end|>\n<|assistant|>\n"
    assert render("no_system", TURNS[1:2]) == expected
    assert render("alpaca", TURNS[:2]) == (
        "<|system|>\nBe brief.<|end|>\n### Instruction:\n Add. <|end|>\n### Response:\n"
    )
    assert "<|assistant|>\n1 + 1<|end|>\n" in render("default", TURNS)


def test_the_checkpoints_own_dialogue_comes_first(tmp_path, tokenizer):
    assert ChatTemplate.find(None, tmp_path, tokenizer) is None
    own = {"system": "Own 😀 '\\.", "user_token": "<u>", "messages": None, "name": "x"}
    (tmp_path / "dialogue_template.json").write_text(json.dumps(own))
    (tmp_path / "chat_template.jinja").write_text("other")
    template = ChatTemplate.find(None, tmp_path, tokenizer)
    assert template.render(TURNS[1:2]).startswith("<|system|>\nOwn 😀 '\\.<|end|>\n<u>\n Add. ")
    assert template.stops(tokenizer) == ("<u>",)
    assert own_source(tmp_path) == template.source


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "hi"),
        ("chat_template.json", json.dumps({"chat_template": "hi"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "hi"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "no"},
                        {"name": "default", "template": "hi"},
                    ]
                }
            ),
        ),
    ],
)
def test_the_template_is_found_where_transformers_finds_it(tmp_path, tokenizer, name, content):
    (tmp_path / name).write_text(content)
    assert ChatTemplate.find(None, tmp_path, tokenizer).render(TURNS) == "hi"


BROKEN = {
    "syntax": ("chat_template.jinja", b"{% if %}"),
    "unknown tag": ("chat_template.jinja", b"{% nonesuch %}"),
    "not utf-8": ("chat_template.jinja", b"\xff\xfe"),
    "of another type": ("tokenizer_config.json", b'{"chat_template": 7}'),
    "a list of other things": ("tokenizer_config.json", b'{"chat_template": [7]}'),
    "not json": ("chat_template.json", b"{"),
    "a dialogue of numbers": ("dialogue_template.json", b'{"end_token": 7}'),
    "a dialogue that is a list": ("dialogue_template.json", b"[]"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_template_of_a_checkpoint_refuses_chats_alone(tmp_path, tokenizer, kind):
    name, content = BROKEN[kind]
    (tmp_path / name).write_bytes(content)
    template = ChatTemplate.find(None, tmp_path, tokenizer)
    for use in (template.encode_prompt, template.encode_dialogue):
        with pytest.raises(RequestError) as caught:
            use(TURNS, tokenizer)
        assert caught.value.hint
    assert template.stops(tokenizer) == ()


@pytest.mark.parametrize(
    ("text", "match"), [("{% if %}", "not valid"), ("{{ a", "not valid"), (None, "no chat template")]
)
def test_a_broken_template_that_was_asked_for_is_reported_at_once(tmp_path, tokenizer, text, match):
    path = tmp_path / "x.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        ChatTemplate.find(str(path), tmp_path, tokenizer)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ nothing() }}",
        "{{ messages | tojson(indent=messages) }}",
        "{{ none.x.y }}",
        "{{ strftime_now(7) }}",
    ],
)
def test_a_template_cannot_break_out(folder, tokenizer, text):
    with pytest.raises(RequestError):
        found(folder, tokenizer, text).render(TURNS)
