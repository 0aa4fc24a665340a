"""The page of results in a browser: nothing fails or is loaded, it fits, its filters do what they say."""

import shutil

import pytest

from starcoder.evaluate.report import page
from tests.evaluate.test_results import result

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RUNS = [
    result(["p", "f", "pf", "s"], text="    return x" + " + 1" * 60 + "\n"),
    result(["f", "p", "pp", "s"], model="an-organization/a-model-with-quite-a-long-name", quantize="int4"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of two runs; it must neither fail nor ask for anything but itself."""
    file = tmp_path / "report.html"
    file.write_text(page(RUNS), "utf-8")
    contexts, wrongs = [], []

    def begin(fragment="", **options):
        contexts.append(context := browser.new_context(**options))
        tab = context.new_page()
        tab.on("console", lambda message: wrongs.append(message.text))
        tab.on("pageerror", lambda error: wrongs.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(file.as_uri()) or wrongs.append(request.url))
        tab.goto(file.as_uri() + fragment)
        return tab

    yield begin
    for context in contexts:
        context.close()
    assert wrongs == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_window_and_follows_the_theme(opened, scheme, width):
    tab = opened(color_scheme=scheme, viewport={"width": width, "height": 800})
    for row in tab.locator("details").all():
        row.locator("summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    red = int(tab.evaluate("getComputedStyle(document.body).backgroundColor").partition("(")[2].split(",")[0])
    assert (red > 128) == (scheme == "light")


def test_what_flipped_is_named_and_leads_to_its_answers(opened):
    tab = opened()
    text = tab.inner_text("body")
    assert "Gained: P/1, P/2" in text and "Lost: P/0" in text and "paired test p =" in text
    tab.click("a[href='#starter/P/1']")
    assert tab.locator("details[id='starter/P/1']").get_attribute("open") is not None


def test_a_link_from_elsewhere_opens_its_problem(opened):
    tab = opened("#starter/P/3")
    assert tab.locator("details[id='starter/P/3']").get_attribute("open") is not None


def test_filters_show_what_they_say(opened):
    tab = opened()

    def shown():
        rows = tab.locator("details[data-state]")
        return [row.get_attribute("data-name") for row in rows.all() if row.is_visible()]

    assert shown() == ["p/0", "p/1", "p/2", "p/3"]
    tab.click("button[data-state=flip]")
    assert shown() == ["p/0", "p/1", "p/2"]
    tab.click("button[data-state=failed]")
    assert shown() == ["p/0", "p/3"]
    tab.fill("input", "P/3")
    assert shown() == ["p/3"]
