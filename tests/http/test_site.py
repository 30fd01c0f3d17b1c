"""The page's routes and headers, its figures, its markdown module under node, and its place in the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from radixlm.serve.site import HEADERS
from tests.http.harness import Server, with_server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "radixlm" / "serve" / "page"
FILES = sorted(file.name for file in FOLDER.iterdir())


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_page_is_served_with_its_policy_and_revalidated(name):
    async def test(server: Server):
        answer = await server.client.get(path_of(name))
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        for header, value in HEADERS.items():
            assert answer.headers[header] == value
        again = await server.client.get(path_of(name), headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == HEADERS["content-security-policy"]
        return answer.headers["content-type"]

    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[
        name.split(".")[-1]
    ]
    assert with_server(test).startswith(kind)


def test_the_policy_allows_nothing_inline_and_no_other_site():
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert HEADERS["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_code_loads_nothing_from_elsewhere_and_parses_no_markup():
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    for name in FILES:
        text = (FOLDER / name).read_text()
        loaded = re.findall(r"""(?:src|href|import|from|url\()\s*=?\s*["'(](https?:)?//""", text)
        assert not loaded, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_other_paths_below_the_page_do_not_exist():
    async def test(server: Server):
        for path in ("/page/", "/page/nothing.js", "/page/../site.py", "/page/%2e%2e/site.py", "/page/index.html"):
            assert (await server.client.get(path)).status_code == 404, path

    with_server(test)


def test_the_page_asks_only_for_routes_that_exist():
    async def test(server: Server):
        served = {route.path for route in server.app.routes}
        asked = {
            found
            for name in FILES
            if name.endswith(".js")
            for found in re.findall(r"""["'`](v1/[\w/]+)""", (FOLDER / name).read_text())
        }
        assert asked >= {"v1/chat/completions", "v1/cache", "v1/cache/match", "v1/cache/pin", "v1/stats", "v1/models"}
        assert {f"/{path}" for path in asked} <= served

    with_server(test)


def test_the_live_figures_count_first_tokens_in_their_buckets():
    async def test(server: Server):
        before = (await server.client.get("/v1/stats")).json()
        for _ in range(3):
            await server.post("/generate", {"text": "a"})
        await server.post("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 0}})
        return before, (await server.client.get("/v1/stats")).json()

    before, after = with_server(test)
    seconds = after["first_token_seconds"]
    assert sum(before["first_token_seconds"]["counts"]) == 0
    assert sum(seconds["counts"]) == 3
    assert len(seconds["counts"]) == len(seconds["bounds"]) + 1
    assert seconds["bounds"] == sorted(seconds["bounds"])
    assert (after["running"], after["waiting"], after["finished"]) == (0, 0, 4)


def test_the_markdown_module_passes_its_own_tests():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    ran = subprocess.run(
        [node, "--test", str(ROOT / "tests" / "page" / "markdown.test.mjs")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_the_page_is_in_the_wheel(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"radixlm/serve/page/{name}" for name in FILES} <= set(names)
