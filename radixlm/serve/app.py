"""The HTTP application: routes, and the one place where errors become answers."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.errors import Error
from radixlm.serve.border import Border
from radixlm.serve.errors import on_error, on_http_error
from radixlm.serve.health import Health
from radixlm.serve.native import Native
from radixlm.serve.openai import OpenAI


def create_app(frontend: Frontend, config: Config) -> Starlette:
    """All routes over one frontend. `app.state.health` is its Health."""
    native, openai, health = Native(frontend, config), OpenAI(frontend, config), Health(frontend, config)
    app = Starlette(
        routes=[*_native(native), *_openai(openai), *_health(health)],
        middleware=[Middleware(Border, metrics=frontend.metrics)],
        exception_handlers={Error: on_error, HTTPException: on_http_error},
    )
    app.state.health = health
    return app


def _native(native: Native) -> list[Route]:
    return [
        Route("/generate", native.generate, methods=["POST", "PUT"]),
        Route("/abort_request", native.abort, methods=["POST"]),
    ]


def _openai(openai: OpenAI) -> list[Route]:
    return [
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
        Route("/v1/models", openai.models),
        Route("/v1/models/{id:path}", openai.one_model),
    ]


def _health(health: Health) -> list[Route]:
    return [
        Route("/live", health.live),
        Route("/ready", health.ready),
        Route("/health", health.health),
        Route("/model_info", health.model_info),
        Route("/get_model_info", health.model_info),
        Route("/server_info", health.server_info),
        Route("/get_server_info", health.server_info),
        Route("/flush_cache", health.flush_cache, methods=["GET", "POST"]),
        Route("/metrics", health.metrics),
    ]
