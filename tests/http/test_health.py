"""Health, facts, cache flush and metrics."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http.harness import Server, with_server


def get(path: str, **options) -> dict:
    async def test(server: Server):
        answer = await server.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return with_server(test, **options)


@pytest.mark.parametrize("path", ["/live", "/ready", "/health"])
def test_a_well_server_says_so(path):
    assert get(path) == {"status": "ok"}


def test_a_dead_engine_fails_health_and_readiness_but_not_liveness_and_probes_do_not_fill_the_log(caplog):
    async def test(server: Server):
        server.engine.ready = False
        codes = [(await server.client.get(path)).status_code for path in ("/live", "/ready", "/health")]
        assert codes == [200, 503, 503]
        assert (await server.client.get("/metrics")).status_code == 200
        assert not caplog.records
        assert (await server.post("/generate", {"text": "x"})).status_code == 503
        assert "POST /generate" in caplog.text

    with_server(test)


def test_a_draining_server_is_alive_but_tells_routers_to_leave_it_out():
    async def test(server: Server):
        server.app.state.health.draining = True
        codes = [(await server.client.get(path)).status_code for path in ("/live", "/ready", "/health")]
        assert codes == [200, 503, 503]

    with_server(test)


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_model_info_names_the_model(path):
    info = get(path, served_model_name="me")
    assert info["model_path"] == "fake"
    assert info["served_model_name"] == "me"
    assert info["is_generation"] is True
    assert info["max_model_len"] == 1024


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_server_info_has_options_facts_and_statistics(path):
    info = get(path, port=31999)
    assert info["port"] == 31999
    assert info["max_total_num_tokens"] == 4096
    assert info["engine"]["context_length"] == 1024
    assert info["internal_states"][0]["waiting"] == 0


def test_the_cache_is_flushed_by_get_and_post():
    async def test(server: Server):
        assert (await server.client.get("/flush_cache")).status_code == 200
        assert (await server.client.post("/flush_cache")).status_code == 200

    with_server(test)


def test_metrics_count_requests_by_route_status_and_outcome():
    async def test(server: Server):
        await asyncio.gather(*(server.post("/generate", {"text": f"a{i}"}) for i in range(3)))
        await server.post("/generate", {"text": ""})
        await server.client.get("/made-up")
        text = (await server.client.get("/metrics")).text
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    values = with_server(test)
    assert values["radixlm_http_requests_total", "/generate", "200"] == 3
    assert values["radixlm_http_requests_total", "/generate", "400"] == 1
    assert values["radixlm_http_requests_total", "404", "none"] == 1
    assert values["radixlm_requests_total", "stop"] == 3
    assert values["radixlm_time_to_first_token_seconds_count",] == 3
    assert values["radixlm_open_requests",] == 0
    assert values["radixlm_engine_accepted_total",] == 3
    assert values["radixlm_engine_running",] == 0
