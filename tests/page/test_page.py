"""The page as people use it, in a headless Chromium. `make test-page` installs what it needs.

After every test: no violation of the page's policy, no error in the console, no dialog of a script that should not run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import FakeEngine, endless
from tests.page.serving import Serving, cached_engine

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; make test-page installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; make test-page says how to get one")

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a></svg>",
    "[click](javascript:alert(1)) ![i](javascript:alert(1)) [d](data:text/html,<script>alert(1)</script>)",
    "![pixel](http://127.0.0.1:9/leak.png)",
    "<iframe src='javascript:alert(1)'></iframe><object data='x'></object><form action='/x'><input name='q'></form>",
    "| <b onclick=alert(1)>a</b> | b |\n|---|---|\n| <img src=x onerror=alert(1)> | <style>*{display:none}</style> |",
    "```html\n<script>alert(1)</script>\n```\n`<script>alert(1)</script>`",
]
WATCH = """
window.violations = [];
const note = (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
document.addEventListener("securitypolicyviolation", note);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, *, errors: tuple[str, ...] = (), **context: Any) -> Iterator[Any]:
    """A visitor's page, checked for what must never happen. `errors` are the parts of console errors that may."""
    visitor = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
    page = visitor.new_page()
    page.set_default_timeout(10_000)
    page.add_init_script(WATCH)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: (seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(url)
    yield page
    assert page.evaluate("window.violations") == []
    assert [text for text in seen if not any(part in text for part in errors)] == []
    visitor.close()


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Any, count: int = 1) -> Any:
    """The last answer, once there are `count` and none is under way."""
    page.wait_for_function("n => document.querySelectorAll('.assistant footer').length === n", arg=count)
    page.wait_for_selector("#send", state="visible")
    return page.locator(".assistant").last


def bodies(page: Any) -> list[dict[str, Any]]:
    """The chat requests that the page sends from now on."""
    sent: list[dict[str, Any]] = []

    def saw(request: Any) -> None:
        if request.url.endswith("/v1/chat/completions"):
            sent.append(json.loads(request.post_data))

    page.on("request", saw)
    return sent


def test_an_answer_streams_in_as_markdown_with_what_it_cost(browser):
    with Serving() as server, opened(browser, server.url) as page:
        page.wait_for_function("() => document.getElementById('model').textContent === 'fake-model'")
        ask(page, "# Title\n\nSome **bold** words and `code`.\n\n- one\n- two")
        answer = answered(page)
        assert answer.locator(".prose h3").text_content() == "Title"
        assert answer.locator(".prose strong").text_content() == "bold"
        assert answer.locator(".prose li").all_text_contents() == ["one", "two"]
        assert "tokens" in answer.locator(".cost").text_content()
        assert answer.locator(".hitbar").text_content() == "0 % cached"


def test_shift_enter_makes_a_line_and_enter_sends(browser):
    with Serving() as server, opened(browser, server.url) as page:
        sent = bodies(page)
        page.focus("#prompt")
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        answered(page)
        assert sent[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_request_in_the_engine_and_keeps_what_came(browser, how):
    endless_engine = partial(FakeEngine, delay_s=0.01, continuation=endless)
    with Serving(endless_engine) as server, opened(browser, server.url) as page:
        ask(page, "go on")
        page.wait_for_function("() => document.querySelector('.assistant .prose')?.textContent.length > 20")
        if how == "button":
            page.click("#stop")
        else:
            page.keyboard.press("Escape")
        answer = answered(page)
        assert "stopped" in answer.locator(".cost").text_content()
        assert len(answer.locator(".prose").text_content()) > 20
        page.wait_for_timeout(300)
        assert server.engine.num_open == 0
        assert len(server.engine.aborted) == 1


def test_regenerate_asks_the_same_again_and_edit_asks_anew_from_there(browser):
    with Serving() as server, opened(browser, server.url) as page:
        sent = bodies(page)
        ask(page, "first")
        answered(page, 1)
        ask(page, "second")
        answered(page, 2)
        page.locator(".assistant").last.get_by_label("Regenerate").click()
        page.wait_for_function("() => document.querySelectorAll('.user').length === 2")
        answered(page, 2)
        assert sent[2] == sent[1]
        question = page.locator(".user").first
        question.hover()
        question.get_by_label("Edit and ask again").click()
        page.get_by_label("Edit the message").fill("changed")
        page.keyboard.press("Enter")
        answered(page, 1)
        assert sent[3]["messages"] == [{"role": "user", "content": "changed"}]
        assert page.locator(".user").count() == 1


def test_conversations_stay_in_this_browser_until_they_are_deleted(browser):
    with Serving() as server, opened(browser, server.url) as page:
        ask(page, "about rivers")
        answered(page)
        page.click("#new")
        ask(page, "about lakes")
        answered(page)
        page.reload()
        titles = page.locator("#conversations li button:first-child")
        assert titles.all_text_contents() == ["about lakes", "about rivers"]
        titles.last.click()
        assert page.locator(".bubble").text_content() == "about rivers"
        page.locator("#conversations li").last.hover()
        page.get_by_label("Delete this conversation").last.click()
        assert titles.all_text_contents() == ["about lakes"]


def test_settings_reach_the_request_and_outlive_a_reload(browser):
    with Serving() as server, opened(browser, server.url, errors=("400",)) as page:
        sent = bodies(page)
        page.click("#tab-settings")
        page.get_by_label("System prompt").fill("Be short.")
        page.get_by_role("slider").first.fill("0.3")
        page.get_by_label("Most tokens").fill("33")
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Stop strings, one a line").fill("END\nSTOP")
        page.keyboard.press("Tab")
        page.reload()
        ask(page, "hello")
        answered(page)
        body = sent[0]
        assert body["messages"][0] == {"role": "system", "content": "Be short."}
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.3, 33, 7)
        assert body["stop"] == ["END", "STOP"]
        page.click("#tab-settings")
        page.get_by_role("radio", name="JSON schema").check(force=True)
        schema = page.get_by_role("textbox", name="JSON schema")
        schema.fill('{"type": "object"')
        assert "no JSON" in page.locator("#panel-settings .error").text_content()
        schema.fill('{"type": "object"}')
        ask(page, "json")
        answered(page, 2)
        assert sent[1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
        page.get_by_role("radio", name="Regex").check(force=True)
        page.get_by_label("Regular expression").fill("yes|no")
        ask(page, "regex")
        answered(page, 3)
        assert sent[2]["regex"] == "yes|no"
        assert "response_format" not in sent[2]


def test_token_probabilities_are_shown_on_hover_and_by_keyboard(browser):
    with Serving() as server, opened(browser, server.url) as page:
        ask(page, "likely?")
        answer = answered(page)
        answer.get_by_label("Token probabilities").click()
        tokens = answer.locator(".token")
        assert tokens.count() == len("likely?\n") + 1
        assert not answer.locator(".prose").is_visible()
        tokens.nth(1).hover()
        assert answer.locator(".card li").count() == 5
        assert answer.locator(".card .chosen span").text_content() == "61 %"
        tokens.nth(2).focus()
        page.keyboard.press("ArrowRight")
        assert tokens.nth(3).evaluate("element => element === document.activeElement")
        answer.get_by_label("Token probabilities").click()
        assert answer.locator(".prose").is_visible()


def test_the_tree_colours_what_of_the_prompt_was_a_hit(browser):
    with Serving(cached_engine) as server, opened(browser, server.url) as page:
        page.evaluate(
            "localStorage.setItem('radixlm.settings', JSON.stringify({system: 'You know every river of Europe.', max_tokens: 8}))"
        )
        page.reload()
        ask(page, "the Rhine?")
        answered(page)
        page.wait_for_selector(".tree .fresh")
        assert page.locator(".tree .hit").count() == 0, "the first prompt found nothing"
        page.click("#new")
        ask(page, "the Danube?")
        answer = answered(page)
        page.wait_for_selector(".tree .hit")
        hit = page.locator(".tree .hit > .node .text").first.text_content()
        assert hit.startswith("You know every river of Europe.")
        share = answer.locator(".hitbar").text_content()
        assert share not in ("0 % cached", "100 % cached")
        page.click("#new")
        page.fill("#prompt", "the Danube? And the Elbe?")
        page.wait_for_selector("#match:not(:empty)")
        assert "tokens cached" in page.locator("#match").text_content()
        assert server.engine.info.num_pages == 16384


def test_the_tree_is_walked_by_keyboard_and_folds(browser):
    with Serving(cached_engine) as server, opened(browser, server.url) as page:
        for question in ("a common beginning, then one", "a common beginning, then two"):
            page.click("#new")
            ask(page, question)
            answered(page)
        page.wait_for_function("() => document.querySelectorAll('[role=treeitem]').length >= 3")
        root = page.locator("[role=treeitem][aria-expanded]").first
        root.focus()
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.getAttribute('aria-level')") == "2"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.locator("[role=treeitem][aria-expanded=false]").count() == 1


def test_a_prefix_is_kept_and_let_go(browser):
    with Serving(cached_engine) as server, opened(browser, server.url) as page:
        ask(page, "keep me, please")
        answered(page)
        page.get_by_role("button", name="Keep this prefix").click()
        page.wait_for_selector(".pins li")
        assert "60 min left" in page.locator(".pins li").text_content()
        page.get_by_label("Let it go").click()
        page.wait_for_selector(".pins li", state="detached")


def test_live_figures_move(browser):
    endless_engine = partial(FakeEngine, delay_s=0.01, continuation=endless)
    with Serving(endless_engine) as server, opened(browser, server.url) as page:
        page.click("#tab-live")
        ask(page, "go on")
        page.wait_for_function("() => document.getElementById('status').textContent === '1 running'")
        page.wait_for_selector(".histogram li")
        page.click("#stop")
        page.wait_for_function("() => document.getElementById('status').textContent === 'idle'")


@pytest.mark.parametrize("stored", [False, True], ids=["streamed", "stored"])
def test_hostile_markdown_stays_inert(browser, stored):
    with Serving() as server, opened(browser, server.url) as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        for text in HOSTILE:
            page.click("#new")
            ask(page, text)
            answered(page)
            if stored:
                page.reload()
                page.wait_for_selector(".assistant footer")
            check_inert(page)
        assert {url.split("/")[2] for url in requests} == {server.url.split("/")[2]}, "the page spoke to others"
        assert page.locator("#conversations script, #conversations img").count() == 0


def check_inert(page: Any) -> None:
    """Nothing that the texts ask for became an element, a handler or a link of its own kind."""
    for tag in ("script", "img", "iframe", "object", "svg:not(.glyph)", "form", "style", "input"):
        assert page.locator(f"#messages {tag}").count() == 0, tag
    links = page.locator("#messages .prose a").evaluate_all("all => all.map((one) => one.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    handlers = "all => all.filter((one) => one.getAttributeNames().some((name) => name.startsWith('on'))).length"
    assert page.locator("#messages *").evaluate_all(handlers) == 0


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab_alone(browser):
    with Serving(api_key="secret-key-001") as server, opened(browser, server.url, errors=("401",)) as page:
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "secret-key-001")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('model').textContent === 'fake-model'")
        ask(page, "hello")
        answered(page)
        assert page.evaluate("sessionStorage.getItem('radixlm.key')") == "secret-key-001"
        assert "secret-key-001" not in page.evaluate("JSON.stringify(localStorage)")


def test_an_error_of_the_server_is_shown_where_the_answer_would_be(browser):
    with Serving() as server, opened(browser, server.url, errors=("400",)) as page:
        ask(page, "x" * 5000)
        page.wait_for_selector(".assistant .error")
        assert "of the context" in page.locator(".assistant .error").text_content()
        page.wait_for_selector("#send", state="visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_every_width_shows_everything_without_scrolling_sideways(browser, width, scheme):
    with Serving(cached_engine) as server, opened(browser, server.url, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("localStorage.setItem('radixlm.settings', JSON.stringify({max_tokens: 40}))")
        page.reload()
        ask(page, "a" * 300 + "\n\n| " + "wide | " * 40 + "\n\n```\n" + "code " * 100)
        answered(page)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.getElementById('scroll').scrollWidth") <= width
        if width <= 1080:
            page.click("#open-inspector")
        for tab in ("live", "settings", "cache"):
            page.click(f"#tab-{tab}")
            panel = page.locator(f"#panel-{tab}")
            assert panel.is_visible()
            assert panel.evaluate("element => element.scrollWidth - element.clientWidth") <= 0, tab
        if width <= 1080:
            page.keyboard.press("Escape")
            assert not page.locator("#inspector").is_visible()


def test_text_has_contrast_in_both_themes(browser):
    """WCAG AA, 4.5 to 1, for every text that is seen in the first view."""
    measure = Path(__file__).with_name("contrast.js").read_text()
    with Serving() as server:
        for scheme in ("light", "dark"):
            with opened(browser, server.url, color_scheme=scheme) as page:
                ask(page, "hello *world*")
                answered(page)
                for tab in ("live", "settings", "cache"):
                    page.click(f"#tab-{tab}")
                    assert page.evaluate(measure) == []
