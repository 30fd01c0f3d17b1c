"""OpenTelemetry traces, with the extra `otel` installed: one span per request, a child of the client's if it names one.

Probes and metrics leave none. The span's own `traceparent` comes back with the answer.
"""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radixlm.engine.output import Usage
from radixlm.engine.watch import watchers
from radixlm.version import __version__

_UNTRACED = ("public", "metrics")  # scopes of routes
_SEND_S = 3  # retries included: a collector that is away delays the end of a drained server by no more
_context = TraceContextTextMapPropagator()


def provider_of(endpoint: str | None) -> TracerProvider:
    """Sends spans to a collector; without an endpoint the standard OTEL_ variables say where to."""
    url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
    exporter = OTLPSpanExporter(endpoint=url, timeout=_SEND_S)
    provider = TracerProvider(resource=Resource.create({"service.name": "radixlm", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Traces:
    """Middleware around everything else."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("radixlm", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(scope["method"], _context.extract(given), SpanKind.SERVER)
        usages: list[Usage] = []
        watchers.set((*watchers.get(), usages.append))

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                ours: dict[str, str] = {}
                _context.inject(ours, set_span_in_context(span))
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in ours.items())]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            _end(span, scope, usages)


def _end(span: Span, scope: Scope, usages: list[Usage]) -> None:
    """Only spans that end are exported."""
    route, row = scope.get("route"), scope.get("row")
    if row is not None and row.scope in _UNTRACED:
        return
    path = route.path if route else "none"
    span.update_name(f"{scope['method']} {path}")
    span.set_attributes({"http.request.method": scope["method"], "http.route": path})
    if usages:
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in usages),
                "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in usages),
                "radixlm.cached_tokens": sum(usage.cached_tokens for usage in usages),
                "radixlm.queue_s": max(usage.queue_s for usage in usages),
                "radixlm.prefill_s": max(usage.prefill_s for usage in usages),
                "radixlm.decode_s": max(usage.decode_s for usage in usages),
            }
        )
    span.end()
