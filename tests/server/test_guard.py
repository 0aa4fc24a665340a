"""Who may ask: keys, rates, hosts, origins and sizes, each refused in the words of its dialect."""

import asyncio

import pytest

from starcoder.errors import ConfigError
from starcoder.server.guard import Guard
from starcoder.server.settings import ApiKey, ServerSettings, read_keys

BODY = {"prompt": "def f", "max_tokens": 2}
KEYS = (ApiKey.of("sesame"), ApiKey.of("open", 2))


@pytest.fixture(scope="module")
def locked(start):
    with start(keys=KEYS) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer SESAME"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "sesame"}, 401),
        ({"authorization": "Bearer sesame"}, 200),
        ({"authorization": "bearer sesame"}, 200),
        ({"x-api-key": "sesame"}, 200),
    ],
)
def test_only_an_exact_key_opens(locked, headers, status):
    assert locked.post("/v1/completions", BODY, headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/health", "/ping", "/info", "/metrics", "/v1/models", "/docs", "/"])
def test_descriptions_need_no_key(locked, path):
    assert locked.http.get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "find"),
    [
        ("/v1/completions", lambda e: e["error"]["type"] == "authentication_error"),
        ("/generate", lambda e: e["error_type"] == "unauthorized"),
        ("/api/generate", lambda e: "API key" in e["error"]),
        ("/infill", lambda e: e["error"]["code"] == 401),
    ],
)
def test_refusals_speak_the_dialect(locked, path, find):
    reply = locked.post(path, BODY)
    assert reply.status_code == 401 and find(reply.json())


def test_a_key_has_its_rate(locked):
    replies = [locked.post("/v1/completions", BODY, headers={"x-api-key": "open"}) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 31
    assert locked.post("/v1/completions", BODY, headers={"x-api-key": "sesame"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("dev.localhost:1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_a_rebound_name_is_refused(idle, host, status):
    assert idle.http.get("/v1/models", headers={"host": host}).status_code == status


def test_foreign_pages_are_refused_and_allowed_ones_get_cors(start):
    with start(allow_origin=("https://good.example",), allow_host=("box",)) as running:
        own = running.url
        for origin, status in [("https://evil.example", 403), ("null", 403), (own, 200)]:
            assert running.post("/v1/completions", BODY, headers={"origin": origin}).status_code == status
        good = {"origin": "https://good.example"}
        reply = running.post("/v1/completions", BODY, headers=good | {"host": "box:1"})
        assert reply.headers["access-control-allow-origin"] == "https://good.example"
        flight = good | {"access-control-request-method": "POST"}
        reply = running.http.options("/v1/completions", headers=flight)
        assert reply.status_code == 204
        assert "authorization" in reply.headers["access-control-allow-headers"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_refused(start, is_chunked):
    with start(max_body_bytes=1000) as running:
        data = b'{"prompt": "' + b"x" * 2000 + b'"}'
        content = iter([data[:900], data[900:]]) if is_chunked else data
        reply = running.http.post("/v1/completions", content=content)
        assert reply.status_code == 413
        assert "1000 bytes" in reply.json()["error"]["message"]


def test_keys_are_read_from_lines(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("# ours\nsesame  # old\n\nopen 2\n")
    assert read_keys(path) == KEYS
    assert b"sesame" not in repr(KEYS).encode()


@pytest.mark.parametrize("text", ["", "# none\n", "a b\n", "a 0\n", "a 1 2\n"])
def test_broken_key_files_are_refused(tmp_path, text):
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_keys(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_keys(tmp_path / "nope.txt")


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"max_queue": 0}, {"max_body_bytes": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError):
        ServerSettings(**wrong)


def test_a_bucket_refills_at_the_rate_of_its_key():
    """Two requests a minute: one more after 30 s and not before, two after a minute, never three."""
    now = 0.0
    settings = ServerSettings(keys=(ApiKey.of("open", 2),))
    answered: list[int] = []
    waits: list[int] = []

    async def app(scope, receive, send):
        answered.append(200)

    async def refuse(scope, receive, send, error):
        waits.append(error.retry_after_s)
        answered.append(429)

    guard = Guard(app, settings=settings, refuse=refuse, clock=lambda: now)

    def ask(at):
        nonlocal now
        now = at
        scope = {"type": "http", "path": "/infill", "method": "POST", "headers": [(b"x-api-key", b"open")]}
        asyncio.run(guard(scope, None, None))
        return answered[-1]

    assert [ask(0), ask(0), ask(0)] == [200, 200, 429] and waits == [31]
    assert [ask(29), ask(30.5), ask(31)] == [429, 200, 429]
    assert [ask(200), ask(200), ask(200)] == [200, 200, 429]
