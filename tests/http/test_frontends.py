"""Two frontends of one engine, over its real socket and scheduler: what is limited or aborted is so on both together."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx

from radixlm.config import Config
from radixlm.engine.client import RemoteEngine
from radixlm.engine.core import Core
from radixlm.engine.server import Server as EngineServer
from radixlm.errors import Aborted
from radixlm.serve import run
from radixlm.serve.siblings import Siblings
from tests.fake_engine import FAKE_INFO, FakeEngine, endless
from tests.fake_runner import FakeRunner, fake_info
from tests.http.harness import Server
from tests.unit.test_client import until_up

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
        await until_up(engine)
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


# -- responses are kept by the frontend that made them, and found through all ----------------------------------------------

PATH = "/v1/responses"


@asynccontextmanager
async def two_served(tmp_path):
    """Two frontends on sockets of their own, each over its own engine, as siblings; and a client of each."""
    (tmp_path / "keys.toml").write_text(KEYS)
    servers = [
        Server(FakeEngine(FAKE_INFO, delay_s=0.002, continuation=endless), port=0, api_keys=str(tmp_path / "keys.toml"))
        for _ in range(2)
    ]
    stops, clients, tasks = [asyncio.Event(), asyncio.Event()], [], []
    for server, stop in zip(servers, stops):
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = run.serve(server.frontend, server.config, ready.set_result, stop, None, Siblings(tmp_path))
        tasks.append(asyncio.ensure_future(serving))
        clients.append(httpx.AsyncClient(base_url=await ready, headers=A, timeout=10))
    try:
        yield servers, clients, lambda i: stops[i].set() or tasks[i]
    finally:
        for client, stop in zip(clients, stops):
            await client.aclose()
            stop.set()
        await asyncio.gather(*tasks)
        for server in servers:
            await server.client.aclose()
            await server.frontend.close()


def drive_two(tmp_path, scenario):
    async def main():
        async with two_served(tmp_path) as (servers, clients, end):
            await scenario(servers, clients, end)

    with asyncio.Runner(loop_factory=run.loop_factory) as runner:
        runner.run(asyncio.wait_for(main(), 30))


def test_a_response_is_found_gone_on_from_and_deleted_through_any_frontend(tmp_path, caplog):
    async def scenario(servers, clients, end):
        one, two = clients
        first = (await one.post(PATH, json={"input": "one", "max_output_tokens": 3})).json()
        at = f"{PATH}/{first['id']}"
        assert (await two.get(at)).json() == (await one.get(at)).json() == first
        assert (await two.get(f"{at}/input_items")).json()["data"][0]["content"] == "one"
        heads = [await client.head(at) for client in (one, two)]
        assert {(head.status_code, head.headers["content-length"], head.content) for head in heads} == {
            (200, str(len((await one.get(at)).content)), b"")
        }
        assert (await two.get(at, headers=B)).status_code == 404, "it is another's"
        assert (await two.get(at, headers={"x-api-key": "no-key-at-all"})).status_code == 401
        more = {"input": "two", "previous_response_id": first["id"], "max_output_tokens": 3, "unheard_of": 1}
        second = await two.post(PATH, json=more)
        assert second.json()["previous_response_id"] == first["id"]
        assert second.headers["x-ignored-params"] == "unheard_of"
        assert len(second.headers.get_list("x-request-id")) == 1
        streamed = await two.post(PATH, json={**more, "stream": True})
        assert "event: response.incomplete" in streamed.text
        wrong = await two.post(PATH, json={**more, "temperature": 9})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
        assert len(servers[0].engine.requests) == 3 and not servers[1].engine.requests
        assert (await two.delete(at)).json()["deleted"] is True
        assert (await one.get(at)).status_code == 404
        counted = [server.frontend.metrics.exposition({}).decode() for server in servers]
        assert 'route="/v1/responses/{id}/input_items"' in counted[1] and "input_items" not in counted[0], (
            "counted once"
        )

    drive_two(tmp_path, scenario)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_running_response_is_followed_and_cancelled_through_any_frontend(tmp_path):
    async def scenario(servers, clients, end):
        one, two = clients
        started = asyncio.ensure_future(one.post(PATH, json={"input": "hi", "background": True, "stream": True}))
        while not servers[0].engine.num_open:
            await asyncio.sleep(0.002)
        identity = servers[0].engine.requests[0].label
        followed = asyncio.ensure_future(two.get(f"{PATH}/{identity}?stream=true"))
        await asyncio.sleep(0.02)
        assert (await two.get(f"{PATH}/{identity}")).json()["status"] == "in_progress"
        leaver = asyncio.ensure_future(two.get(f"{PATH}/{identity}?stream=true&starting_after=1"))
        await asyncio.sleep(0.02)
        leaver.cancel()
        assert (await two.post(f"{PATH}/{identity}/cancel")).json()["status"] == "cancelled"
        assert (await followed).text == (await started).text
        assert "event: response.failed" in (await followed).text

    drive_two(tmp_path, scenario)


def test_a_response_of_a_frontend_that_is_gone_is_not_found(tmp_path):
    async def scenario(servers, clients, end):
        one, two = clients
        identity = (await one.post(PATH, json={"input": "one", "max_output_tokens": 3})).json()["id"]
        await end(0)
        for answer in (
            await two.get(f"{PATH}/{identity}"),
            await two.get(f"{PATH}/resp_{40 * 'a'}"),
            await two.post(PATH, json={"input": "two", "previous_response_id": identity}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

    drive_two(tmp_path, scenario)
