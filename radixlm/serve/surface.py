"""What routes share: how bodies are read, which model is served, how answers go out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import cached_property, wraps
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.validate import Chat, GenerateRequest, show
from radixlm.errors import UnknownModel
from radixlm.serve import schema
from radixlm.serve.body import decode, ignored_header, read_body, refuse_unknown, unknown_fields
from radixlm.serve.constraints import constraint_fields
from radixlm.serve.convert import Text, present, shared_fields
from radixlm.serve.reader import ReplyReader
from radixlm.serve.routes import EVENTS, Endpoint, Row, Scope
from radixlm.serve.sse import SSE, EventStream, Wire, until_disconnect
from radixlm.serve.tools import Tools
from radixlm.text.reply import ReplyFormat
from radixlm.types import SamplingParams

B = TypeVar("B", bound=msgspec.Struct)

UNSUPPORTED = ("lora_path", "session_params", "custom_logit_processor")
NAMES = {
    "include_stop": "no_stop_trim",
    "namespace": "cache_salt",
    "label": "rid",
    "timeout_s": "timeout",
    "logprobs": "top_logprobs",
}
"""Our field names to the client's, for error messages."""


class Answer(Protocol):
    """What a generating route says, in its surface's words."""

    async def whole(self) -> bytes:
        """The JSON of the whole answer."""
        ...

    def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        ...


class Surface:
    """The frontend and the options behind the routes."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        self.frontend = frontend
        self.config = config

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        return self.config.served_model_name or self.config.model

    def check_model(self, name: str | None) -> None:
        """Raises UnknownModel for a name that is not the model's."""
        if name not in (None, self.model, self.config.model):
            text = f"the model {show(name)} is not served here; this server has {self.model!r}"
            raise UnknownModel(text, param="model")

    @cached_property
    def reply_format(self) -> ReplyFormat:
        """How the served model writes replies."""
        return ReplyFormat.of(self.frontend.template.text, self.config.tool_parser, self.config.reasoning_parser)

    def reader(
        self, tools: Tools | None, headers: dict[str, str], *, separates: bool = True
    ) -> tuple[ReplyReader, dict[str, str]]:
        """What reads the replies to a request with these tools, and the headers with what of them is ignored."""
        reader = ReplyReader(self.frontend, self.reply_format, tools, separates=separates)
        return reader, reader.headers(headers, self.config)

    async def read(
        self, request: Request, kind: type[B], nested: Callable[[B], list[str]] | None = None
    ) -> tuple[B, dict[str, str]]:
        """The body, and the headers that say what of it was ignored. A model it names is for `check_model`.

        `nested` finds the unknown fields of what the body holds as it came.
        """
        raw = await read_body(request, self.config.max_body)
        body = decode(raw, kind)
        unknown = unknown_fields(raw, kind) + (nested(body) if nested else [])
        if self.config.strict_params:
            refuse_unknown(unknown, kind)
        return body, ignored_header(unknown)

    def get(self, path: str, work: Callable[[], Awaitable[object]], answer: object, scope: Scope = "inference") -> Row:
        """A route without a body that answers with what `work` gives, as JSON."""

        @wraps(work)
        async def endpoint(request: Request) -> Response:
            del request
            return as_json(await work())

        return Row(path, endpoint, scope, answer=answer)

    def post(self, path: str, work: Callable[[B], Coroutine[Any, Any, object]], body: type[B], answer: object) -> Row:
        """A route that answers a body with what `work` makes of it, as JSON. It ends when the client leaves."""

        @wraps(work)
        async def endpoint(request: Request) -> Response:
            taken, headers = await self.read(request, body)
            return as_json(await until_disconnect(work(taken), request.receive), headers)

        return Row(path, endpoint, "inference", ("POST",), body, None, answer)

    async def prepare(self, request: Request, asked: Sequence[GenerateRequest]) -> list[Prepared]:
        """`Frontend.prepare`, which ends when the client leaves."""
        return await until_disconnect(self.frontend.prepare(asked), request.receive)

    async def respond(
        self, request: Request, answer: Answer, headers: dict[str, str], *, streams: bool | None, wire: Wire = SSE
    ) -> Response:
        """The answer, whole or as a stream."""
        if streams:
            return EventStream(answer.events(), headers, wire)
        whole = await until_disconnect(answer.whole(), request.receive)
        return Response(whole, 200, headers, media_type="application/json")


def as_json(answer: object, headers: dict[str, str] | None = None) -> Response:
    """An answer that is JSON."""
    return Response(msgspec.json.encode(answer), 200, headers, media_type="application/json")


def generating(path: str, endpoint: Endpoint, body: type[msgspec.Struct], answer: object) -> Row:
    """A route that generates, whole or as a stream."""
    return Row(path, endpoint, "inference", ("POST",), body, None, answer, EVENTS)


def make_request(
    body: schema.OpenAI,
    prompt: Text | Chat,
    fields: Iterable[tuple[str, Any]] | dict[str, Any],
    names: dict[str, str],
    *,
    max_tokens_is_default: bool = False,
) -> GenerateRequest:
    """One prompt of a body as a request; `fields` are those of SamplingParams that the route found itself."""
    constraint, constraint_names = constraint_fields(body)
    sampling: dict[str, Any] = {**shared_fields(body), **constraint, **dict(fields)}
    sampling |= present(min_tokens=body.min_tokens, seed=body.seed, include_stop=body.no_stop_trim)
    return GenerateRequest(
        prompt=prompt,
        sampling=SamplingParams(**sampling),
        max_tokens_is_default=max_tokens_is_default,
        namespace=body.cache_salt or body.extra_key or "",
        priority=body.priority or 0,
        timeout_s=body.timeout,
        label=body.rid or "",
        names={**names, **constraint_names},
    )
