"""Classes of holes that are closed by what is not there: read from the source, and tried through every surface."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from radixlm.config import Config
from radixlm.engine.supervisor import socket_folder
from radixlm.errors import ModelError
from radixlm.weights.locate import locate
from tests.http.harness import Server, with_server

ROOT = Path(__file__).parents[2] / "radixlm"
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "xmlrpc"}
FETCHERS = {"urllib", "http", "requests", "httpx", "aiohttp"}


def sources(folder: Path = ROOT) -> list[tuple[Path, ast.AST]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(folder.rglob("*.py"))]


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    for path, tree in sources():
        assert not imports(tree) & FORBIDDEN_MODULES, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in FORBIDDEN_CALLS, f"{path}:{node.lineno} calls {name}"
                shell = [word for word in node.keywords if word.arg == "shell"]
                assert not shell, f"{path}:{node.lineno} uses a shell"
                assert not name.endswith(("recv_pyobj", "send_pyobj")), f"{path}:{node.lineno}"


def test_no_surface_can_fetch_a_url():
    for folder in ("serve", "text", "engine", "sched", "cache"):
        for path, tree in sources(ROOT / folder):
            assert not imports(tree) & FETCHERS, path


def test_no_assertion_guards_the_door():
    """`python -O` removes assertions: in the files that let people in, what they check must be ours alone."""
    for name in ("auth.py", "keys.py", "hosts.py", "border.py", "body.py"):
        tree = ast.parse((ROOT / "serve" / name).read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert all("came from a match" in ast.unparse(node) for node in found), name


def test_the_engines_socket_is_in_a_folder_of_this_user_alone():
    with socket_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_weights_that_would_have_to_be_unpickled_are_no_model(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError):
        locate(Config(model=str(tmp_path)))
    with pytest.raises(ModelError):
        locate(Config(model=str(tmp_path / name)))


TEMPLATES = {"chat_template": "{{ 1 }}"}
URLS = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]}
CODE = {"custom_logit_processor": "gASVAAAA"}


@pytest.mark.parametrize("fields", [TEMPLATES, URLS, CODE], ids=["template", "url", "code"])
def test_no_surface_takes_templates_urls_or_code(fields):
    async def test(server: Server):
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, **fields}
        answer = await server.post("/v1/chat/completions", chat)
        assert answer.status_code == 400, answer.text
        if "messages" in fields:
            for path in ("/v1/messages", "/api/chat"):
                refused = await server.post(path, {"model": "fake", **chat})
                assert refused.status_code == 400, (path, refused.text)
        if "custom_logit_processor" in fields:
            for path in ("/generate", "/v1/completions"):
                assert (await server.post(path, {"prompt": "a", **fields})).status_code == 400

    with_server(test)


def test_no_row_takes_a_file_name():
    async def test(server: Server):
        places = {row.path for row in server.app.state.rows if ":path" in row.path}
        assert places <= {"/v1/models/{id:path}"}, "ids of models are compared with names, never opened"

    with_server(test)
