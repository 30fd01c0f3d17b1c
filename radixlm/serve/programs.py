"""POST /v1/programs: whole programs of the language, run next to the engine.

The body holds programs in their intermediate form. They run side by side; events tell values as they are made, and each
program ends with one EndEvent or ErrorEvent. Without `stream` the answer comes whole: values, text and error by program.
Every request that a program makes passes the one validator; a client that leaves ends all of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.validate import MAX_BATCH
from radixlm.errors import InvalidRequest
from radixlm.lang.backends.model import EngineModel
from radixlm.lang.execute import execute
from radixlm.lang.ir import BranchEvent, ErrorEvent, Event, Program, ValueEvent, verify
from radixlm.serve.routes import Row
from radixlm.serve.sse import DONE, EventStream, event, until_disconnect
from radixlm.serve.surface import Surface, as_json, generating


class ProgramsRequest(msgspec.Struct, kw_only=True):
    """Body of POST /v1/programs."""

    programs: tuple[Program, ...]
    stream: bool = False


class ProgramResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What came of one program: values of branch 0 by name (`values`), of the others by `branch.name`, and its text."""

    values: dict[str, str | list[str]] = {}
    text: str = ""
    error: ErrorEvent | None = None


class ProgramsAnswer(msgspec.Struct, kw_only=True):
    """Answer of POST /v1/programs without `stream`, in the order of the programs."""

    results: list[ProgramResult]


class Programs(Surface):
    """The route. All programs share one model, so that together they never ask for more than the engine takes."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._model = EngineModel(frontend)

    def rows(self) -> list[Row]:
        """Its row in the table of routes."""
        return [generating("/v1/programs", self.run, ProgramsRequest, ProgramsAnswer)]

    async def run(self, request: Request) -> Response:
        """Runs programs of the language."""
        body, headers = await self.read(request, ProgramsRequest)
        if not 1 <= len(body.programs) <= MAX_BATCH:
            raise InvalidRequest(f"{len(body.programs)} programs; send 1 to {MAX_BATCH}", param="programs")
        for program in body.programs:
            verify(program)
        if body.stream:
            return EventStream(self._events(body.programs), headers)
        return as_json(await until_disconnect(self._whole(body.programs), request.receive), headers)

    async def _events(self, programs: tuple[Program, ...]) -> AsyncGenerator[bytes, None]:
        async with aclosing(execute(self._model, programs)) as events:
            async for told in events:
                yield event(msgspec.json.encode(told))
        yield DONE

    async def _whole(self, programs: tuple[Program, ...]) -> ProgramsAnswer:
        results = [ProgramResult(values={}) for _ in programs]
        async with aclosing(execute(self._model, programs)) as events:
            async for told in events:
                _enter(results[told.program], told)
        return ProgramsAnswer(results=results)


def _enter(result: ProgramResult, told: Event) -> None:
    match told:
        case ValueEvent(branch=branch, name=name, value=value):
            result.values[f"{branch}.{name}" if branch else name] = value
        case BranchEvent(branch=0, context=context):
            result.text = context.text
        case ErrorEvent():
            result.error = told
        case _:
            pass
