"""Chat over HTTP: who may chat, what messages may be, and what a broken template refuses."""


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


def test_a_broken_template_of_the_checkpoint_refuses_chats_and_nothing_else(start, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with start(folder=tmp_path) as running:
        reply = running.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
        assert reply.status_code == 400
        assert "not valid" in reply.text
        assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200
        assert running.http.get("/props").status_code == 200
