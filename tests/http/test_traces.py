"""Spans of requests, read where they would be exported."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from radixlm.errors import ConfigError
from radixlm.serve.traces import Traces, provider_of
from tests.http.harness import Server, with_server

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced(server: Server) -> tuple[httpx.AsyncClient, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    transport = httpx.ASGITransport(app=Traces(server.app, provider))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"), exporter


def test_spans_reach_the_collector_that_the_option_names():
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.path.encode() + self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            del args

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        provider = provider_of(f"http://127.0.0.1:{collector.server_port}/")

        async def test(server: Server):
            transport = httpx.ASGITransport(app=Traces(server.app, provider))
            await httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1").get("/v1/models")

        with_server(test)
        provider.shutdown()
        collector.shutdown()
        thread.join()
    (sent,) = received
    assert sent.startswith(b"/v1/traces")
    assert b"GET /v1/models" in sent


def test_the_option_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "radixlm.serve.traces", None)
    with pytest.raises(ConfigError, match=r"radixlm\[otel\]"):
        with_server(lambda server: None, otlp_endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_one_span_under_the_clients_with_its_tokens_and_times(stream):
    async def test(server: Server):
        client, exporter = traced(server)
        body = {"prompt": "abc", "max_tokens": 3, "n": 2, "stream": stream}
        answer = await client.post("/v1/completions", json=body, headers={"traceparent": PARENT})
        (span,) = exporter.get_finished_spans()
        assert span.name == "POST /v1/completions"
        assert (span.parent.trace_id, span.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
        assert answer.headers["traceparent"] == f"00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01"
        assert span.attributes["http.response.status_code"] == 200
        assert span.attributes["gen_ai.usage.input_tokens"] == 6
        assert span.attributes["gen_ai.usage.output_tokens"] == 6
        assert {"radixlm.queue_s", "radixlm.prefill_s", "radixlm.decode_s"} <= set(span.attributes)

    with_server(test)


def test_probes_leave_no_span_and_refusals_leave_one_without_tokens():
    async def test(server: Server):
        client, exporter = traced(server)
        await client.get("/live")
        await client.post("/v1/completions", json={"prompt": "a", "max_tokens": -1})
        (span,) = exporter.get_finished_spans()
        assert span.attributes["http.response.status_code"] == 400
        assert span.parent is None
        assert "gen_ai.usage.input_tokens" not in span.attributes

    with_server(test)
