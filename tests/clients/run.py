"""Every client against one real server: `make test-clients`, or `python -m tests.clients.run NAME...` for some of them.

Each client gets an environment of its own under .venvs/clients, made on first use with its newest release that can be
installed, and runs one script, which prints a line per check. At the end comes the table; the exit status is 1 if a check
failed. `--write-docs` puts the table into docs/clients.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from radixlm.config import Config
from radixlm.weights.locate import locate
from tests.e2e.server import serving

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOME = ROOT / ".venvs" / "clients"
DOCS = ROOT / "docs" / "clients.md"
MODEL = "smollm2-135m"
INSTALL_S, RUN_S = 600, 420
OUTCOME = re.compile(r"^(ok|FAILED) (.*?) [|] (.*)$", re.M)
"""A line that a script prints for a check."""
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.S)


@dataclass(frozen=True)
class Client:
    """A client: the package whose version counts, what its environment needs, and its script with arguments."""

    name: str
    package: str
    requirements: tuple[str, ...]
    script: str
    arguments: tuple[str, ...] = ()

    @property
    def is_node(self) -> bool:
        """Whether it is JavaScript."""
        return self.script.endswith(".mjs")

    @property
    def folder(self) -> Path:
        """Its environment."""
        return HOME / self.name


_AI_SDK = ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod")
_SGLANG = (
    "sglang==0.5.2",
    "pybase64",
    "transformers",
    "datasets",
    "pillow",
)  # the last one that installs without a GPU
CLIENTS = (
    Client("openai-2", "openai", ("openai<3",), "openai_client.py"),
    Client("openai-3", "openai", ("openai>=3",), "openai_client.py"),
    Client("openai-node", "openai", ("openai",), "openai_client.mjs"),
    Client("anthropic", "anthropic", ("anthropic",), "anthropic_client.py"),
    Client("ollama", "ollama", ("ollama",), "ollama_client.py"),
    Client("langchain-openai", "langchain-openai", ("langchain-openai",), "langchain_client.py"),
    Client("llama-index", "llama-index-llms-openai-like", ("llama-index-llms-openai-like",), "llama_index_client.py"),
    Client("litellm", "litellm", ("litellm", "mcp"), "litellm_client.py"),
    Client("instructor", "instructor", ("instructor",), "instructor_client.py"),
    Client("pydantic-ai", "pydantic-ai-slim", ("pydantic-ai-slim[openai]",), "pydantic_ai_client.py"),
    Client("outlines", "outlines", ("outlines", "openai"), "outlines_client.py"),
    Client("guidance", "guidance", ("guidance", "openai"), "guidance_client.py"),
    Client("dspy", "dspy", ("dspy",), "dspy_client.py"),
    Client("vercel-ai", "ai", _AI_SDK, "vercel_client.mjs"),
    Client("sglang", "sglang", _SGLANG, "sglang_client.py"),
    Client("sglang-router", "sglang-router", ("sglang-router", "httpx"), "router_client.py", ("sglang-router",)),
    Client("smg", "smg", ("smg", "httpx"), "router_client.py", ("smg",)),
)


@dataclass(frozen=True)
class Result:
    """What one client did: (held, check, what was seen), in order; `problem` if it could not be run to its end."""

    client: Client
    version: str
    checks: tuple[tuple[bool, str, str], ...]
    problem: str = ""

    @property
    def held(self) -> bool:
        """Whether all is well."""
        return not self.problem and bool(self.checks) and all(held for held, _, _ in self.checks)


def run(client: Client, environment: dict[str, str]) -> Result:
    """Installs if need be, runs, and reads what the script printed."""
    try:
        _install(client)
        done = subprocess.run(
            _command(client), env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )
    except subprocess.SubprocessError as error:
        return Result(client, "?", (), f"{type(error).__name__}: {error}"[:200])
    found = tuple((word == "ok", name, seen) for word, name, seen in OUTCOME.findall(done.stdout))
    failed = any(not held for held, _, _ in found)
    problem = "" if (done.returncode == 0) == (not failed) and found else f"ended with status {done.returncode}"
    if problem or failed:
        print(done.stderr[-4000:], file=sys.stderr)
    return Result(client, _version(client), found, problem)


def _install(client: Client) -> None:
    wanted, stamp = "\n".join(client.requirements), client.folder / ".installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(client.folder, ignore_errors=True)
    client.folder.mkdir(parents=True)
    if client.is_node:
        (client.folder / "package.json").write_text('{"private": true, "type": "module"}')
        _run("npm", "install", "--silent", *client.requirements, folder=client.folder)
    else:
        _run(sys.executable, "-m", "venv", "--without-pip", str(client.folder))
        _run(str(_uv()), "pip", "install", "--quiet", "--python", str(_python(client)), *client.requirements)
    stamp.write_text(wanted)


def _uv() -> Path:
    """The installer, in an environment of its own: it makes the twenty others in seconds each."""
    folder = HOME / ".uv"
    if not (folder / "bin" / "uv").is_file():
        venv.create(folder, with_pip=True, clear=True)
        _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    return folder / "bin" / "uv"


def _run(*command: str, folder: Path = ROOT) -> None:
    subprocess.run(command, cwd=folder, timeout=INSTALL_S, check=True)


def _python(client: Client) -> Path:
    return client.folder / "bin" / "python"


def _command(client: Client) -> list[str]:
    if not client.is_node:
        return [str(_python(client)), str(HERE / "python" / client.script), *client.arguments]
    for file in (HERE / "node").glob("*.mjs"):  # a module is looked for beside the file that imports it
        shutil.copy(file, client.folder)
    return ["node", str(client.folder / client.script), *client.arguments]


def _version(client: Client) -> str:
    if client.is_node:
        return json.loads((client.folder / "node_modules" / client.package / "package.json").read_text())["version"]
    code = f"from importlib.metadata import version; print(version({client.package!r}))"
    return subprocess.run([str(_python(client)), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| client | version | held | checks |", "|---|---|---|---|"]
    for result in results:
        held = sum(held for held, _, _ in result.checks)
        names = [name if held else f"**{name}**" for held, name, _ in result.checks]
        told = "; ".join(names) + (f" ({result.problem})" if result.problem else "")
        lines.append(f"| {result.client.name} | {result.version} | {held} of {len(result.checks)} | {told} |")
    return "\n".join(lines) + "\n"


def _environment(urls: list[str]) -> dict[str, str]:
    tokenizer = locate(Config(model=MODEL)).tokenizer
    names = {"RADIXLM_URL": urls[0], "RADIXLM_URL_2": urls[1], "RADIXLM_MODEL": MODEL, "RADIXLM_TOKENIZER": tokenizer}
    quiet = {"DO_NOT_TRACK": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    return {**os.environ, **quiet, **{name: str(value) for name, value in names.items()}}


def main() -> int:
    """Runs the clients named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(client.name for client in CLIENTS)}")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/clients.md")
    options = parser.parse_args()
    chosen = [client for client in CLIENTS if not options.names or client.name in options.names]
    results: list[Result] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(MODEL, "--kv-tokens", "32768")) for _ in range(2)]
        environment = _environment([server.url for server in servers])
        for client in chosen:
            result = run(client, environment)
            results.append(result)
            for held, name, seen in result.checks:
                print(f"{client.name}: {'ok' if held else 'FAILED'} {name}: {seen}", flush=True)
    print("\n" + table(results))
    if options.write_docs:
        DOCS.write_text(_TABLE.sub(lambda _: table(results), DOCS.read_text()))
    num_held = sum(result.held for result in results)
    print(f"{num_held} of {len(results)} clients hold in every check")
    return 0 if num_held == len(chosen) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
