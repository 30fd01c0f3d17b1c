"""The HTTP application: the table of routes, and the one place where errors become answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.errors import Error
from radixlm.serve import anthropic_answer, ollama_answer, replies, schema
from radixlm.serve.anthropic import Anthropic
from radixlm.serve.auth import Guard
from radixlm.serve.border import Border
from radixlm.serve.cache import Cache
from radixlm.serve.control import Control
from radixlm.serve.errors import on_error, on_http_error
from radixlm.serve.health import Health
from radixlm.serve.native import Native
from radixlm.serve.ollama import Ollama
from radixlm.serve.openai import OpenAI
from radixlm.serve.openapi import OpenApi
from radixlm.serve.programs import Programs
from radixlm.serve.routes import Row
from radixlm.serve.site import Site
from radixlm.serve.tokens import Tokens

EVENTS = "text/event-stream"


def create_app(frontend: Frontend, config: Config) -> Starlette:
    """All routes over one frontend. `app.state` has the Health and the table of rows."""
    health = Health(frontend, config)
    rows = [
        *_native(Native(frontend, config), Tokens(frontend, config)),
        *_control(Control(frontend, config)),
        *_openai(OpenAI(frontend, config)),
        *_anthropic(Anthropic(frontend, config)),
        *_ollama(Ollama(frontend, config)),
        *_health(health),
        *Cache(frontend, config).rows(),
        *Site(frontend).rows(),
        *Programs(frontend, config).rows(),
    ]
    document = OpenApi(rows)
    rows.append(Row("/openapi.json", document.serve, "public", answer=dict[str, Any]))
    guard = Guard(config)
    app = Starlette(
        routes=[*_guarded(rows, guard)],
        middleware=[Middleware(Border, metrics=frontend.metrics)],
        exception_handlers={Error: on_error, HTTPException: on_http_error},
    )
    app.state.health, app.state.rows = health, rows
    return app


def _guarded(rows: Iterable[Row], guard: Guard) -> Iterable[Route]:
    """Routes that let in whom their row's scope allows."""
    for row in rows:
        yield Route(row.path, guard.around(row), methods=list(row.methods))


def _native(native: Native, tokens: Tokens) -> list[Row]:
    generated = replies.Generated | list[replies.Generated]
    tokenize = Row("/tokenize", tokens.tokenize, "inference", ("POST",), schema.Tokenize, None, replies.Tokenized)
    detokenize = Row(
        "/detokenize", tokens.detokenize, "inference", ("POST",), schema.Detokenize, None, replies.Detokenized
    )
    return [
        Row("/generate", native.generate, "inference", ("POST", "PUT"), schema.Generate, None, generated, EVENTS),
        *_spelled(tokenize, "/v1/tokenize"),
        *_spelled(detokenize, "/v1/detokenize"),
    ]


def _control(control: Control) -> list[Row]:
    post, done = ("POST",), replies.Done
    return [
        Row("/abort_request", control.abort, "inference", post, schema.AbortRequest, None, replies.Aborted),
        Row("/pause_generation", control.pause, "admin", post, schema.PauseGeneration, None, done),
        Row("/continue_generation", control.resume, "admin", post, answer=done),
        Row("/flush_cache", control.flush_cache, "admin", ("GET", *post), None, schema.FlushCache, dict[str, Any]),
    ]


def _openai(openai: OpenAI) -> list[Row]:
    post = ("POST",)
    return [
        Row(
            "/v1/completions",
            openai.completions,
            "inference",
            post,
            schema.Completion,
            None,
            replies.TextAnswer,
            EVENTS,
        ),
        Row(
            "/v1/chat/completions",
            openai.chat,
            "inference",
            post,
            schema.ChatCompletion,
            None,
            replies.ChatAnswer,
            EVENTS,
        ),
        Row("/v1/models", openai.models, "inference", answer=replies.ModelList),
        Row("/v1/models/{id:path}", openai.one_model, "inference", answer=replies.ModelCard),
    ]


def _anthropic(anthropic: Anthropic) -> list[Row]:
    message = Row("/v1/messages", anthropic.messages, "inference", ("POST",), schema.Messages, stream=EVENTS)
    count = Row("/v1/messages/count_tokens", anthropic.count_tokens, "inference", ("POST",), schema.CountTokens)
    return [
        replace(message, answer=replies.MessageAnswer, errors=anthropic_answer.ERRORS),
        replace(count, answer=replies.CountedTokens, errors=anthropic_answer.ERRORS),
    ]


def _ollama(ollama: Ollama) -> list[Row]:
    post, lines, facts = ("POST",), "application/x-ndjson", dict[str, Any]
    rows = [
        Row("/api/chat", ollama.chat, "inference", post, schema.OllamaChat, None, replies.OllamaAnswer, lines),
        Row(
            "/api/generate",
            ollama.generate,
            "inference",
            post,
            schema.OllamaGenerate,
            None,
            replies.OllamaAnswer,
            lines,
        ),
        Row("/api/tags", ollama.tags, "inference", answer=facts),
        Row("/api/ps", ollama.running, "inference", answer=facts),
        Row("/api/show", ollama.show, "inference", post, schema.OllamaModel, None, facts),
        Row("/api/version", ollama.version, "inference", answer=facts),
    ]
    return [replace(row, errors=ollama_answer.ERRORS) for row in rows]


def _health(health: Health) -> list[Row]:
    return [
        Row("/live", health.live, "public", answer=replies.Status),
        Row("/ready", health.ready, "public", answer=replies.Status),
        *_spelled(Row("/health", health.health, "public", answer=replies.Status), "/health_generate"),
        *_spelled(Row("/model_info", health.model_info, "inference", answer=replies.ModelInfo), "/get_model_info"),
        *_spelled(Row("/server_info", health.server_info, "inference", answer=replies.ServerInfo), "/get_server_info"),
        Row("/v1/loads", health.loads, "inference", query=schema.Loads, answer=replies.Loads),
        Row("/get_load", health.load, "inference", answer=list[dict[str, Any]]),
        Row("/metrics", health.metrics, "metrics", media="text/plain"),
    ]


def _spelled(row: Row, *other: str) -> list[Row]:
    """One route under all the names that clients know it by."""
    return [row, *(replace(row, path=path) for path in other)]
