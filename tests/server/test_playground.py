"""The playground in a browser: suggestions come and are taken by keys; nothing is loaded from elsewhere."""

import os
import shutil
import time

import pytest

from starcoder.engine.settings import EngineSettings
from starcoder.server.settings import ApiKey
from tests.server.test_worker import Slow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Opens the playground of a server; the page must neither fail nor ask anybody else."""
    contexts, wrongs = [], []

    def begin(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrongs.append(str(error)))
        page.on("console", lambda said: wrongs.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda asked: None if asked.url.startswith(url) else wrongs.append(asked.url))
        page.goto(url)
        until(page, "document.getElementById('model').textContent !== '…'")
        return page

    yield begin
    for context in contexts:
        context.close()
    assert wrongs == []


def until(page, claim, timeout_s=10.0):
    """Wait for JavaScript to be true. Playwright's own wait needs `eval`, which the page forbids."""
    end = time.monotonic() + timeout_s
    while not page.evaluate(claim):
        assert time.monotonic() < end, claim
        page.wait_for_timeout(10)


def type_code(page, text):
    """Replace the code by `text`, as somebody who types."""
    page.focus("#code")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(text)


def ghost(page):
    until(page, "document.getElementById('ghost').textContent !== '' && asking === null")
    return page.text_content("#ghost")


def settle(page, **values):
    for name, value in values.items():
        field = page.locator(f"#{name}")
        field.select_option(value) if name in ("stop_at", "layout") else field.fill(str(value))


def test_a_suggestion_appears_and_tab_takes_it(idle, open_page):
    page = open_page(idle.url)
    settle(page, stop_at="", max_tokens=6)
    type_code(page, "def add(a, b):\n    return a")
    shown = ghost(page)
    assert page.input_value("#code") == "def add(a, b):\n    return a"
    page.keyboard.press("Tab")
    assert page.input_value("#code") == "def add(a, b):\n    return a" + shown
    assert page.evaluate("document.activeElement.id") == "code"
    ghost(page)  # the next one follows
    page.keyboard.press("Escape")
    assert page.text_content("#ghost") == ""


def test_undo_takes_an_accepted_suggestion_back(idle, open_page):
    page = open_page(idle.url)
    settle(page, stop_at="", max_tokens=4)
    type_code(page, "x = 1")
    ghost(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Control+z")
    assert page.input_value("#code") == "x = 1"


def test_typing_what_is_shown_shortens_it_without_asking(idle, open_page):
    page = open_page(idle.url)
    settle(page, stop_at="", max_tokens=8)
    type_code(page, "a = (1, 2)\nb = ")
    shown = ghost(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("document.execCommand('insertText', false, ghost[0])")
    assert page.text_content("#ghost") == shown[1:]
    page.wait_for_timeout(300)
    assert asked == []


def test_a_newer_suggestion_ends_the_older_request(idle, open_page):
    page = open_page(idle.url)
    settle(page, stop_at="", max_tokens=300, pause=0)
    type_code(page, "def f(")
    for letter in "abcdef":
        page.keyboard.type(letter)
        page.wait_for_timeout(10)
    page.keyboard.press("Escape")
    idle.wait_until_idle()


def test_nothing_is_asked_while_typing_if_not_wanted(idle, open_page):
    page = open_page(idle.url)
    page.uncheck("#auto")
    type_code(page, "y = ")
    page.wait_for_timeout(300)
    assert page.text_content("#ghost") == ""
    settle(page, stop_at="", max_tokens=3)
    page.focus("#code")
    page.keyboard.press("Control+Space")
    ghost(page)


def test_figures_of_the_last_request_are_shown(idle, open_page):
    page = open_page(idle.url)
    settle(page, stop_at="", max_tokens=5)
    type_code(page, "def multiply(a, b):\n    return ")
    ghost(page)
    figure = {
        name: page.text_content(f"#{name}") for name in ("first", "speed", "prefilled", "cached", "written")
    }
    assert figure["first"].endswith(" ms") and figure["speed"].endswith(" tokens/s")
    assert int(figure["written"]) == 5 and int(figure["prefilled"]) > 0
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Space")
    ghost(page)
    assert page.text_content("#prefilled") == "0"  # the same prompt once more comes from the cache


def test_a_chat_streams_and_begins_anew(idle, open_page):
    page = open_page(idle.url)
    settle(page, max_tokens=8)
    page.fill("#say", "Hello <b>there</b>")
    page.keyboard.press("Enter")
    until(page, "turns.length === 2 && talking === null")
    assert page.text_content("#turns .user") == "Hello <b>there</b>"  # shown, never run
    assert page.text_content("#turns .assistant").strip()
    page.click("#forget")
    assert page.locator("#turns li").count() == 0


def test_an_answer_can_be_stopped(start, weights, tokenizer, open_page):
    engine = Slow(weights, tokenizer, settings=EngineSettings(cache_bytes=8_000_000))
    engine.pause_s = 0.2
    with start(chat_template="default", engine=engine) as running:
        page = open_page(running.url)
        settle(page, max_tokens=400)
        page.fill("#say", "Go on")
        page.keyboard.press("Enter")
        page.click("#halt")
        until(page, "talking === null")
        running.wait_until_idle()
        assert engine.stats().generated_tokens < 200
        assert page.is_visible("#send")
        page.context.close()


def test_a_base_model_says_so_instead_of_chatting(start, open_page):
    with start() as running:
        page = open_page(running.url)
        page.wait_for_selector("#no-chat:visible")
        assert "instruct model" in page.text_content("#no-chat")
        assert page.is_disabled("#say")
        page.context.close()


def test_a_key_is_asked_for_and_used(start, open_page):
    with start(keys=(ApiKey.of("secret"),)) as running:
        page = open_page(running.url)
        settle(page, stop_at="", max_tokens=3)
        type_code(page, "z = ")
        page.wait_for_selector("#key:visible")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        ghost(page)
        assert not page.is_visible("#ask-key")
        page.context.close()


def test_what_goes_wrong_is_told(idle, open_page):
    page = open_page(idle.url)
    page.route("**/v1/completions", lambda route: route.abort())
    type_code(page, "q = ")
    page.wait_for_selector("#trouble:visible")
    assert page.text_content("#trouble") == "The server does not answer."


def test_light_and_dark_follow_the_system_and_the_button(idle, open_page):
    page = open_page(idle.url, color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.evaluate(theme) == "light"
    page.reload()
    assert page.evaluate(theme) == "light"


def test_tab_leaves_the_editor_when_nothing_is_suggested(idle, open_page):
    page = open_page(idle.url)
    page.uncheck("#auto")
    page.focus("#code")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "code"


def test_every_control_has_a_name(idle, open_page):
    page = open_page(idle.url)
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button")].filter((field) =>
           !(field.labels && field.labels.length) && !field.ariaLabel && !field.textContent.trim())
           .map((field) => field.id)"""
    )
    assert nameless == []


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_width_scrolls_sideways(idle, open_page, width):
    page = open_page(idle.url, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_browser_may_load_nothing_from_elsewhere(idle):
    reply = idle.http.get("/", headers={"accept": "text/html"})
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in reply.text and "https://" not in reply.text
    assert idle.http.get("/", headers={"accept": "*/*"}).text == "Ollama is running"


def test_pictures_are_taken_where_wanted(idle, open_page):
    """For whoever changes how it looks: PLAYGROUND_PICTURES=DIR keeps one of each kind."""
    folder = os.environ.get("PLAYGROUND_PICTURES")
    if folder is None:
        pytest.skip("PLAYGROUND_PICTURES names no folder")
    for scheme in ("light", "dark"):
        for width, height in ((1280, 860), (390, 844)):
            page = open_page(idle.url, color_scheme=scheme, viewport={"width": width, "height": height})
            settle(page, stop_at="", max_tokens=14)
            page.fill("#say", "Write a loop.\n```python\nfor x in y:\n    pass\n```\nThanks")
            page.keyboard.press("Enter")
            until(page, "turns.length === 2 && talking === null")
            type_code(page, "def add(a, b):\n    return a")
            ghost(page)
            page.screenshot(path=f"{folder}/{scheme}-{width}.png", full_page=width < 500)
