"""Who may do what: every route of the table, with every kind of key."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest

from radixlm.config import Config
from radixlm.errors import ConfigError
from radixlm.serve.keys import check_exposure, hash_of, load_keys
from radixlm.serve.routes import OPENAI_ERRORS, Row
from tests.fake_engine import endless
from tests.http.harness import Server, with_server

KEYS = {
    "alice": ("alice-key-0001", ["inference"]),
    "bob": ("bob-key-000002", ["inference"]),
    "grafana": ("grafana-key-03", ["metrics"]),
    "root": ("root-key-00004", ["inference", "metrics", "admin"]),
}


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys.toml"
    lines = [f'[{name}]\nsha256 = "{hash_of(key)}"\nscopes = {scopes}' for name, (key, scopes) in KEYS.items()]
    file.write_text("\n".join(lines))
    return str(file)


def rows(server: Server) -> list[Row]:
    return server.app.state.rows


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


async def ask(server: Server, row: Row, method: str, **headers: str):
    path = re.sub(r"\{\w+(:\w+)?\}", "x", row.path)
    return await server.client.request(method, path, headers=headers)


def test_every_route_of_the_application_stands_in_the_table():
    async def test(server: Server):
        known = {(row.path, method) for row in rows(server) for method in row.methods}
        served = {(route.path, method) for route in server.app.routes for method in route.methods - {"HEAD"}}
        assert served == known
        public = {row.path for row in rows(server) if row.scope == "public"}
        assert {"/live", "/ready", "/health", "/openapi.json"} <= public
        assert not [path for path in public if path.startswith(("/v1", "/generate", "/api"))]

    with_server(test)


def test_every_route_that_is_not_public_asks_for_a_key(keys):
    async def test(server: Server):
        for row in rows(server):
            for method in row.methods:
                wrong = [{}, {"authorization": "Bearer nobody"}, {"authorization": "Basic YTpi"}, {"x-api-key": ""}]
                wrong += [{"authorization": "Bearer " + KEYS["bob"][0][:-1]}, {"x-api-key": KEYS["bob"][0] + "x"}]
                for headers in wrong:
                    answer = await ask(server, row, method, **headers)
                    if row.scope == "public":
                        assert answer.status_code not in (401, 403), row.path
                        continue
                    assert answer.status_code == 401, (row.path, headers)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    msgspec.json.decode(answer.content, type=row.errors.type)
        assert server.engine.requests == []

    with_server(test, api_keys=keys)


def test_every_scope_opens_its_own_routes_alone(keys):
    async def test(server: Server):
        for row in rows(server):
            for name, (key, scopes) in KEYS.items():
                for headers in (bearer(name), {"x-api-key": key}):
                    answer = await ask(server, row, row.methods[0], **headers)
                    assert answer.status_code != 401, (row.path, name)
                    shut = row.scope not in ("public", *scopes)
                    assert (answer.status_code == 403) == shut, (row.path, name, answer.text)

    with_server(test, api_keys=keys)


def test_the_path_decides_whatever_the_host_says(keys):
    async def test(server: Server):
        for host in ("127.0.0.1/live?", "127.0.0.1#/live", "live"):
            answer = await server.client.get("/server_info", headers={"host": host})
            assert answer.status_code in (400, 401, 403)

    with_server(test, api_keys=keys)


def test_tenants_share_no_cache_and_one_tenant_shares_with_itself(keys):
    async def test(server: Server):
        for name in ("alice", "bob", "alice"):
            for salt in ({}, {"cache_salt": "s"}):
                for path in ("/generate", "/v1/completions"):
                    assert (await server.post(path, {"prompt": "a", **salt}, headers=bearer(name))).status_code == 200
        assert {request.namespace for request in server.engine.requests} == {"alice/", "alice/s", "bob/", "bob/s"}

    with_server(test, api_keys=keys)


def test_with_one_key_the_namespace_is_the_clients_own():
    async def test(server: Server):
        headers = {"x-api-key": "only-one-key"}
        await server.post("/generate", {"prompt": "a", "cache_salt": "s"}, headers=headers)
        assert [request.namespace for request in server.engine.requests] == ["s"]

    with_server(test, api_key="only-one-key")


def test_only_the_owner_aborts_and_only_an_operator_aborts_all(keys):
    async def test(server: Server):
        body = {"text": "a", "rid": "job", "sampling_params": {"max_new_tokens": 900}}
        running = asyncio.ensure_future(server.post("/generate", body, headers=bearer("alice")))
        while not server.engine.num_open:
            await asyncio.sleep(0.001)
        for name, rid in (("bob", "job"), ("alice", "jo"), ("alice", "job1"), ("root", "job")):
            answer = await server.post("/abort_request", {"rid": rid}, headers=bearer(name))
            assert answer.json() == {"aborted": 0}, (name, rid)
        for name in ("alice", "bob"):
            answer = await server.post("/abort_request", {"abort_all": True}, headers=bearer(name))
            assert answer.status_code == 403
        assert server.engine.num_open == 1
        answer = await server.post("/abort_request", {"rid": "job"}, headers=bearer("alice"))
        assert answer.json() == {"aborted": 1}
        assert (await running).json()["meta_info"]["finish_reason"]["type"] == "abort"

    with_server(test, api_keys=keys, continuation=endless, delay_s=0.005)


def test_a_public_address_without_keys_must_be_asked_for_and_has_no_admin():
    with pytest.raises(ConfigError, match="--insecure-public"):
        check_exposure(Config(host="0.0.0.0"))
    for fine in (
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "api_key": "12345678"},
    ):
        check_exposure(Config(**fine))

    async def test(server: Server):
        assert (await server.client.get("/v1/models")).status_code == 200
        assert (await server.client.post("/flush_cache")).status_code == 403
        assert (await server.post("/abort_request", {"abort_all": True})).status_code == 403

    with_server(test, host="0.0.0.0", insecure_public=True)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        *[
            (host, 200)
            for host in ("localhost", "LOCALHOST:80", "127.0.0.1:30000", "10.0.0.7", "[::1]:1", "a.localhost")
        ],
        *[(host, 403) for host in ("evil.example", "evil.example:30000", "localhost.evil.example", "127.0.0.1.nip.io")],
        *[(host, 400) for host in ("", "a b", "a/../b?c", "user@localhost", "localhost:x", "[::1", "localhost\x00")],
    ],
)
def test_a_name_that_may_be_bound_to_another_address_is_refused(host, code):
    async def test(server: Server):
        for row in rows(server):
            answer = await ask(server, row, row.methods[0], host=host)
            assert (answer.status_code == code) or (code == 200 and answer.status_code not in (403,)), row.path
            if code != 200 and row.errors is OPENAI_ERRORS:
                assert answer.json()["error"]["param"] == "Host"

    with_server(test)


def test_the_operator_names_other_hosts_and_with_keys_any_will_do():
    async def named(server: Server):
        for host, code in (("llm.example:443", 200), ("other.example", 403), ("localhost", 200)):
            assert (await server.client.get("/live", headers={"host": host})).status_code == code

    async def anything(server: Server):
        assert (await server.client.get("/live", headers={"host": "llm.example"})).status_code == 200

    with_server(named, allowed_hosts="llm.example, b.example", api_key="12345678")
    with_server(anything, api_key="12345678")
    with_server(anything, allowed_hosts="*")


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_may_use_no_route(headers):
    async def test(server: Server):
        for row in rows(server):
            answer = await ask(server, row, row.methods[0], **headers)
            assert (answer.status_code == 403) == (row.scope != "public"), row.path
            assert "access-control-allow-origin" not in answer.headers
        own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
        assert (await server.post("/generate", {"text": "a"}, headers=own)).status_code == 200

    with_server(test)


def test_an_origin_that_the_operator_names_may_ask_and_read():
    async def test(server: Server):
        page = {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}
        answer = await server.post("/generate", {"text": "a"}, headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        asked = {**page, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        assert (await server.client.options("/generate", headers=asked)).status_code == 200
        assert (await server.post("/generate", {"text": "a"}, headers=FOREIGN[0])).status_code == 403

    with_server(test, allowed_origins="https://chat.example")


def limited(tmp_path) -> str:
    file = tmp_path / "keys.toml"
    file.write_text('[a]\nkey = "limited-key"\nmax_requests = 2\nmax_tokens = 20\n[b]\nkey = "another-key"\n')
    return str(file)


def test_a_key_has_only_so_many_requests_open(tmp_path):
    async def test(server: Server):
        body, a, b = {"prompt": "a", "max_tokens": 20}, {"x-api-key": "limited-key"}, {"x-api-key": "another-key"}
        two = [asyncio.ensure_future(server.post("/generate", body, headers=a)) for _ in range(2)]
        while server.engine.num_open < 2:
            await asyncio.sleep(0.001)
        for path in ("/generate", "/v1/completions"):
            for stream in (False, True):
                refused = await server.post(path, {**body, "stream": stream}, headers=a)
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "rate_limit_exceeded"
                assert int(refused.headers["retry-after"]) >= 1
        assert (await server.post("/generate", {**body, "n": 3}, headers=a)).status_code == 400
        assert (await server.post("/generate", body, headers=b)).status_code == 200
        assert {(await one).status_code for one in two} == {200}
        assert (await server.post("/generate", body, headers=a)).status_code == 200, "what ended gives its place back"

    with_server(test, api_keys=limited(tmp_path), continuation=endless, delay_s=0.01)


def test_a_key_may_ask_for_only_so_many_tokens(tmp_path):
    async def test(server: Server):
        a = {"x-api-key": "limited-key"}
        refused = await server.post("/v1/completions", {"prompt": "a", "max_tokens": 21}, headers=a)
        assert refused.json()["error"]["message"] == "max_tokens is 21; this key may ask for at most 20"
        whole = await server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, headers=a)
        assert whole.json()["usage"]["completion_tokens"] == 20, "without a number it is the most that is allowed"

    with_server(test, api_keys=limited(tmp_path), continuation=endless)


@pytest.mark.parametrize(
    "text",
    [
        "[a]\n",
        '[a]\nkey = "short"',
        '[a]\nkey = "has spaces in it"',
        '[a]\nsha256 = "zz"',
        '[a]\nkey = "long-enough-1"\nscopes = ["everything"]',
        '[a]\nkey = "long-enough-1"\nmax_requests = 0',
        '[a]\nkey = "long-enough-1"\nmax_request = 1',
        '["a b"]\nkey = "long-enough-1"',
        '[a]\nkey = "long-enough-1"\n[b]\nkey = "long-enough-1"',
        "not toml",
    ],
)
def test_a_key_file_that_makes_no_sense_is_refused_at_start(tmp_path, text):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_keys(Config(api_keys=str(file)))


def test_keys_appear_in_no_answer():
    async def test(server: Server):
        headers = {"authorization": "bearer secret-admin-key"}
        answer = await server.client.get("/server_info", headers=headers)
        assert answer.status_code == 200
        assert "secret" not in answer.text
        assert "secret" not in repr(server.config)

    with_server(test, api_key="secret-plain-key", admin_api_key="secret-admin-key")
