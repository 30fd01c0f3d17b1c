"""Takes the pictures of docs/images from a running server with SmolLM2: `python -m tests.page.screenshots URL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.page.test_page import CHROMIUM

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SYSTEM = "You are a geography teacher. Answer in one or two short sentences."
SETTINGS = {"system": SYSTEM, "temperature": 0, "max_tokens": 160}
TALKS = [
    ["What is the capital of France?"],
    ["What is the capital of Italy?", "And what is it famous for?"],
    ["Which river flows through Vienna?", "Where does it end?"],
    ["What is the highest mountain of Europe?"],
    ["What is the highest mountain of Africa?", "In which country is it, and who lives there?"],
]


def talk(page: Any, questions: list[str]) -> None:
    """A new conversation."""
    page.click("#new")
    for number, question in enumerate(questions, 1):
        page.fill("#prompt", question)
        page.keyboard.press("Enter")
        done = "n => document.querySelectorAll('.assistant footer').length === n"
        page.wait_for_function(done, arg=number, timeout=120_000)


def shoot(page: Any, name: str) -> None:
    """One picture, once everything on it is up to date."""
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / name)


def main(url: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(url)
        page.evaluate("text => localStorage.setItem('radixlm.settings', text)", json.dumps(SETTINGS))
        page.reload()
        for questions in TALKS:
            talk(page, questions)
        page.get_by_role("button", name="Keep this prefix").click()
        page.fill("#prompt", "How high is it?")
        shoot(page, "page-cache.png")
        page.click("#tab-settings")
        page.get_by_role("radio", name="Dark").check(force=True)
        page.click("#tab-live")
        answer = page.locator(".assistant").last
        answer.get_by_label("Token probabilities").click()
        answer.locator(".t1, .t2, .t3, .t4, .t5").last.hover()
        shoot(page, "page-live.png")
        answer.get_by_label("Token probabilities").click()
        page.set_viewport_size({"width": 390, "height": 760})
        shoot(page, "page-phone.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
