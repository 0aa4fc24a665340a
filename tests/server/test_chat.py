"""Messages become the prompt of their template; text of a user can never become a special token."""

import json

import pytest

from starcoder.errors import ConfigError
from starcoder.server.codec import HTTPError
from starcoder.server.templates import DIALOGUES, ChatFormat, encode

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}<|endoftext|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Add. "}]


def test_a_dialogue_ends_where_the_assistant_begins():
    assert (
        DIALOGUES["no_system"].render(TURNS[1:])
        == "<|system|>\n<|end|>\n<|user|>\n Add. <|end|>\n<|assistant|>\n"
    )
    told = DIALOGUES["alpaca"].render(TURNS)
    assert told.startswith("<|system|>\nBe brief.<|end|>\n### Instruction:\n Add. ")
    assert told.endswith("<|end|>\n### Response:\n")
    more = [*TURNS, {"role": "assistant", "content": "Ok."}]
    assert "<|assistant|>\nOk.<|end|>\n" in DIALOGUES["default"].render(more)


def test_the_checkpoints_own_template_is_found(tmp_path, tokenizer):
    assert ChatFormat.find(None, tmp_path, tokenizer) is None
    own = {"system": "Own.", "user_token": "<u>", "messages": None, "name": "x"}
    (tmp_path / "dialogue_template.json").write_text(json.dumps(own))
    found = ChatFormat.find(None, tmp_path, tokenizer)
    assert found.render(TURNS[1:]).startswith("<|system|>\nOwn.<|end|>\n<u>\n Add. ")
    assert "<u>" in found.stop and "<|end|>" in found.stop  # no tokens of this vocabulary


MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>\n{%- if message.role == 'user' %}\n"
    "{{ message.content }}\n{% else %}\n{% generation %}\n{{ message.content }}\n{%- endgeneration -%}\n!"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked for training"])
def test_a_jinja_file_equals_transformers(tmp_path, tokenizer, template):
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "chat.jinja"
    path.write_text(template)
    ours = ChatFormat.find(str(path), tmp_path, tokenizer).render(TURNS)
    oracle = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._backend, eos_token="<|endoftext|>", chat_template=template
    )
    assert ours == oracle.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["nope.jinja", "zephyr"])
def test_an_unknown_template_is_told(tmp_path, tokenizer, name):
    with pytest.raises(ConfigError, match="no chat template") as caught:
        ChatFormat.find(name, tmp_path, tokenizer)
    assert "no_system, default, alpaca" in caught.value.hint


@pytest.mark.parametrize("text", ["{% if %}", "{{ a"])
def test_a_broken_template_is_told(tokenizer, text):
    with pytest.raises(ConfigError, match="not valid"):
        ChatFormat.of_jinja(text, tokenizer)


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
    ],
)
def test_a_template_cannot_break_out(tokenizer, text):
    with pytest.raises(HTTPError):
        ChatFormat.of_jinja(text, tokenizer).render(TURNS)


@pytest.mark.parametrize(
    "attack", ["<|endoftext|>", "x<fim_prefix>y", "<file_sep><file_sep>", "\ue000\ue001\ue0001"]
)
def test_a_message_never_becomes_a_special_token(tokenizer, attack):
    chat = ChatFormat.of_jinja(CHATML, tokenizer)
    harmless = encode([{"role": "user", "content": "hello"}], chat, tokenizer)
    attacked = encode([{"role": "user", "content": attack}], chat, tokenizer)
    special = {tokenizer.encode_with_special(text)[0] for text in tokenizer.special_texts}
    assert [id for id in attacked if id in special] == [id for id in harmless if id in special]
    if "\ue000" not in attack:
        assert attack in tokenizer.decode(attacked)


def test_plain_messages_are_encoded_as_a_whole(tokenizer):
    chat = ChatFormat.of_jinja(CHATML, tokenizer)
    assert encode(TURNS, chat, tokenizer) == tokenizer.encode_with_special(chat.render(TURNS))


def test_a_base_model_says_which_models_chat(start):
    with start() as running:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        for path in ("/v1/chat/completions", "/api/chat"):
            reply = running.post(path, body)
            assert reply.status_code == 400
            assert "base model" in reply.text and "starcoder2-15b-instruct" in reply.text


def test_parts_of_a_message_are_joined(idle):
    parts = [{"type": "text", "text": "Add "}, {"type": "text", "text": "numbers."}]
    replies = [
        idle.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        )
        for content in (parts, "Add numbers.")
    ]
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    assert texts[0] == texts[1]


def test_a_chat_that_is_too_long_is_refused_not_cut(idle):
    body = {"messages": [{"role": "user", "content": "x = 1\n" * 500}]}
    reply = idle.post("/v1/chat/completions", body)
    assert reply.status_code == 400 and "context holds 512" in reply.text
