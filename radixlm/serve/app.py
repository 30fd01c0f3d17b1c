"""The HTTP application: the table of routes, and the one place where errors become answers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.errors import ConfigError, Error
from radixlm.serve.anthropic import Anthropic
from radixlm.serve.auth import Guard
from radixlm.serve.border import Border
from radixlm.serve.cache import Cache
from radixlm.serve.chat import ChatCompletions
from radixlm.serve.completions import Completions
from radixlm.serve.control import Control
from radixlm.serve.embeddings import Embeddings
from radixlm.serve.errors import on_error, on_http_error
from radixlm.serve.grammar import GrammarCheck
from radixlm.serve.health import Health
from radixlm.serve.hosts import Hosts, words
from radixlm.serve.models import Models
from radixlm.serve.native import Native
from radixlm.serve.ollama import Ollama
from radixlm.serve.ollama_models import OllamaModels
from radixlm.serve.openapi import openapi_row
from radixlm.serve.programs import Programs
from radixlm.serve.responses import Responses
from radixlm.serve.routes import Row
from radixlm.serve.siblings import Siblings
from radixlm.serve.site import page_rows
from radixlm.serve.tokens import Tokens

_SGLANG = (Native, Tokens, Control)
_OPENAI = (ChatCompletions, Completions, Embeddings, Models)
_OTHERS = (Anthropic, Ollama, OllamaModels, Cache, GrammarCheck, Programs)
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def create_app(frontend: Frontend, config: Config, siblings: Siblings | None = None) -> Starlette:
    """All routes over one frontend. `app.state` has the Health, the table of rows, and the way in for siblings."""
    health = Health(frontend, config)
    rows = [row for kind in (*_SGLANG, *_OPENAI, *_OTHERS) for row in kind(frontend, config).rows()]
    rows += [*Responses(frontend, config, siblings or Siblings()).rows(), *health.rows(), *page_rows()]
    rows.append(openapi_row(rows))
    hosts = Hosts(config)
    guard = Guard(config, hosts, health)
    around = [*_traces(config), Middleware(Border, metrics=frontend.metrics, hosts=hosts), *_cors(config)]
    app = _App(routes=[*_guarded(rows, guard)], middleware=around)
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    app.state.health, app.state.rows, app.state.within = health, rows, app.answer
    return app


class _App(Starlette):
    """Finds the endpoint of a plain path without asking route after route, and needs no layers of its own for errors."""

    def build_middleware_stack(self) -> ASGIApp:
        """The given layers around `answer`."""
        app: ASGIApp = self.answer
        for layer in reversed(self.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app

    @cached_property
    def _plain(self) -> dict[str, Route]:
        return {route.path: route for route in self.routes if isinstance(route, Route) and not route.param_convertors}

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # hot
        """Without layers: what a sibling hands over has passed its own."""
        route, request = self._plain.get(scope["path"]), Request(scope, receive, send)
        try:
            if route is None or scope["method"] not in (route.methods or ()):
                return await self.router(scope, receive, send)
            scope["route"] = route
            response = await route.endpoint(request)
            await response(scope, receive, send)
        except Error as error:
            await on_error(request, error)(scope, receive, send)
        except HTTPException as error:
            await on_http_error(request, error)(scope, receive, send)


def _cors(config: Config) -> list[Middleware]:
    """Tells browsers which other pages may read answers; nothing is said unless the operator names some."""
    origins = words(config.allowed_origins)
    if not origins:
        return []
    return [Middleware(CORSMiddleware, allow_origins=sorted(origins), allow_methods=["*"], allow_headers=["*"])]


def _traces(config: Config) -> list[Middleware]:
    """Off unless the option or the variables of OpenTelemetry ask for traces, and only then imported."""
    named = any(os.environ.get(name) for name in _OTLP_VARIABLES)
    if config.otlp_endpoint is None and not named:
        return []
    try:
        from radixlm.serve.traces import Traces, provider_of
    except ImportError:
        if config.otlp_endpoint is None:
            return []
        text = "--otlp-endpoint needs OpenTelemetry; install it: pip install 'radixlm[otel]'"
        raise ConfigError(text, param="otlp_endpoint") from None
    return [Middleware(Traces, provider=provider_of(config.otlp_endpoint))]


def _guarded(rows: Iterable[Row], guard: Guard) -> Iterable[Route]:
    """Routes that let in whom their row's scope allows."""
    for row in rows:
        yield Route(row.path, guard.around(row), methods=list(row.methods))
