"""Two frontends of one engine, over its real socket and scheduler: what is limited or aborted is so on both together."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

from radixlm.config import Config
from radixlm.engine.client import RemoteEngine
from radixlm.engine.core import Core
from radixlm.engine.server import Server as EngineServer
from radixlm.errors import Aborted
from tests.fake_runner import FakeRunner, fake_info
from tests.http.harness import Server

A, B, ADMIN = {"x-api-key": "key-of-a"}, {"x-api-key": "key-of-b"}, {"x-api-key": "the-admins-key"}
KEYS = '[a]\nkey = "key-of-a"\nmax_requests = 4\n[b]\nkey = "key-of-b"\n'
BODY = {"input_ids": [1, 2, 3], "rid": "job", "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}}


@asynccontextmanager
async def two_frontends(tmp_path):
    """Both, and one core behind them, which computes nothing until it is told to go on."""
    facts = fake_info(vocab_size=256, max_running=16)
    runner = FakeRunner(facts.max_running, facts.num_pages, facts.page_size, facts.context_length, 256)
    core = Core(runner, facts, Config(overlap=False))
    thread = threading.Thread(target=core.run)
    thread.start()
    socket = EngineServer(core, f"ipc://{tmp_path}/engine")
    (tmp_path / "keys.toml").write_text(KEYS)
    servers: list[Server] = []
    for _ in range(2):
        engine = RemoteEngine(f"ipc://{tmp_path}/engine")
        engine.start()
        await engine.wait_ready(10)
        servers.append(Server(engine, api_keys=str(tmp_path / "keys.toml"), admin_api_key="the-admins-key"))  # type: ignore[arg-type]
    try:
        await servers[0].engine.control("pause")
        yield servers
    finally:
        for server in servers:
            await server.client.aclose()
            await server.frontend.close()
        socket.close(Aborted("over"))
        core.stop()
        thread.join(10)


async def open_requests(servers, count):
    while (await servers[0].engine.control("stats"))["open"] < count:
        await asyncio.sleep(0.001)


def drive(tmp_path, scenario):
    async def run():
        async with two_frontends(tmp_path) as servers:
            await scenario(*servers)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_request_is_aborted_by_its_owner_through_any_frontend(tmp_path):
    async def scenario(one, two):
        mine = [asyncio.ensure_future(server.post("/generate", BODY, headers=A)) for server in (one, two, two)]
        others = asyncio.ensure_future(one.post("/generate", BODY, headers=B))
        await open_requests((one, two), 4)
        for server in (one, two):
            assert (await server.post("/abort_request", {"rid": "jo"}, headers=A)).json() == {"aborted": 0}
        assert (await one.post("/abort_request", {"rid": "job"}, headers=A)).json() == {"aborted": 3}
        assert {(await each).json()["meta_info"]["finish_reason"]["type"] for each in mine} == {"abort"}
        await one.engine.control("resume")
        assert (await others).json()["meta_info"]["finish_reason"]["type"] == "length", "it was another's"

    drive(tmp_path, scenario)


def test_an_operator_aborts_what_all_frontends_have_open(tmp_path):
    async def scenario(one, two):
        running = [asyncio.ensure_future(server.post("/generate", BODY, headers=A)) for server in (one, two)]
        await open_requests((one, two), 2)
        assert (await two.post("/abort_request", {"abort_all": True}, headers=ADMIN)).json() == {"aborted": 2}
        assert {(await each).json()["meta_info"]["finish_reason"]["type"] for each in running} == {"abort"}

    drive(tmp_path, scenario)


def test_a_keys_limit_counts_what_it_has_open_on_all_frontends(tmp_path):
    async def scenario(one, two):
        running = [asyncio.ensure_future(server.post("/generate", BODY, headers=A)) for server in (one, one, two, two)]
        await open_requests((one, two), 4)
        for server in (one, two):
            refused = await server.post("/generate", BODY, headers=A)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert "4 choices open, the limit is 4" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"] == "1"
        others = asyncio.ensure_future(two.post("/generate", BODY, headers=B))
        await open_requests((one, two), 5)
        await one.engine.control("resume")
        assert {(await each).status_code for each in (*running, others)} == {200}
        assert (await two.post("/generate", BODY, headers=A)).status_code == 200, "what ended gives its place back"

    drive(tmp_path, scenario)
