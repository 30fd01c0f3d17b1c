"""`RuntimeEndpoint`: a server by its URL. A RadixLM server gets whole programs; any other is asked by SGLang's native API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from radixlm.engine.output import Delta, Usage
from radixlm.engine.validate import Stretch
from radixlm.lang.backends.http import HttpBackend
from radixlm.lang.backends.remote import RemoteBackend, RemoteModel, event_of, fields_of, finish_of
from radixlm.lang.backends.wire import Address
from radixlm.lang.chat import Chat, TemplateChat
from radixlm.lang.errors import Unsupported
from radixlm.lang.execute import Scored, Scores, total
from radixlm.lang.ir import Event, Program
from radixlm.lang.sequence import Sequence as Held
from radixlm.messages import TokenLogprobs
from radixlm.text.template import load_template
from radixlm.types import SamplingParams

_NAMES = {name: name for name in SamplingParams.__struct_fields__ if name not in ("choice", "logprobs", "include_stop")}
_NAMES |= {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "seed": "sampling_seed"}
_CONTEXT = 1 << 20


class RuntimeEndpoint(RemoteBackend):
    """`base_url` of a RadixLM or SGLang server.

    SGLang's API renders no conversations, so there roles need `chat_template`: a Jinja file of the model, or a folder that
    holds its tokenizer_config.json. `native` True asks a RadixLM server in SGLang's way too.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        chat_template: str | Path | None = None,
        native: bool | None = None,
    ) -> None:
        del verify, chat_template_name  # certificates are the system's; templates are the model's own
        self.address = Address(base_url.rstrip("/"), api_key or "")
        self._native = native
        self._whole = HttpBackend(base_url, api_key)
        super().__init__(_NativeModel(self.address, chat_template))

    async def execute(self, programs: Sequence[Program]) -> AsyncGenerator[Event, None]:
        """As `Backend.execute`."""
        if self._native is None:
            found = await self.address.ask("GET", "/v1/programs")
            self._native = found.status != 405  # RadixLM: the method is wrong, not the path
        backend = super() if self._native else self._whole
        async with aclosing(backend.execute(programs)) as events:
            async for event in events:
                yield event

    async def flush_cache(self) -> None:
        """As `Backend.flush_cache`."""
        await self._whole.flush_cache()

    async def server_info(self) -> dict[str, Any]:
        """As `Backend.server_info`."""
        return await self.address.get("/get_server_info")


class _NativeModel(RemoteModel):
    def __init__(self, address: Address, template: str | Path | None) -> None:
        self._address = address
        self._template = Path(template) if template is not None else None

    def chat(self, program: Program) -> Chat:
        """By the template given; roles raise Unsupported without one."""
        if self._template is None:
            return _NoChat()
        folder, file = (self._template, None) if self._template.is_dir() else (self._template.parent, self._template)
        return TemplateChat(load_template(folder, {}, _CONTEXT, file), program.tools)

    async def script(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        """As `Model.script`. Streams repeat the text so far, or send what is new, as the server is set up."""
        (part,) = parts
        body = {**_asked(part.sampling), "text": before.text, "stream": True}
        known: dict[int, str] = {}
        async with aclosing(self._address.events("/generate", body)) as events:
            async for data in events:
                event = event_of(data)
                index = event.get("index", 0)
                yield _delta(event, index, known)

    async def score(self, before: Held, options: Sequence[str], *, alone: bool) -> Scored:
        """As `Model.score`: one request for the length of the prompt, then one for all options."""
        text = before.text
        sampling = {"max_new_tokens": 0, "temperature": 0}
        first = await self._address.post("/generate", {"text": text, "sampling_params": sampling})
        start = max(0, first["meta_info"]["prompt_tokens"] - 2)
        spent = [_usage(first["meta_info"])]
        wave = [self._scored([text + option for option in options], options, start, spent)]
        if alone:
            wave.append(self._scored(list(options), options, 0, spent))
        given, *rest = await asyncio.gather(*wave)
        return Scored(given, rest[0] if rest else [], total(spent))

    async def _scored(self, texts: list[str], options: Sequence[str], start: int, spent: list[Usage]) -> Scores:
        answers = await self._address.post(
            "/generate",
            {
                "text": texts,
                "sampling_params": {"max_new_tokens": 0, "temperature": 0},
                "return_logprob": True,
                "return_text_in_logprobs": True,
                "logprob_start_len": start,
            },
        )
        spent += [_usage(answer["meta_info"]) for answer in answers]
        rows = [answer["meta_info"]["input_token_logprobs"] for answer in answers]
        return [_last(row, len(option)) for row, option in zip(rows, options)]


class _NoChat:
    trims = False

    def before(self, roles: tuple[str, ...]) -> str:
        """Raises Unsupported."""
        raise Unsupported(
            f"the role {roles[-1]} needs the model's chat template; give RuntimeEndpoint chat_template=FILE"
        )

    after = before


def _asked(sampling: SamplingParams) -> dict[str, Any]:
    """The body of a request, without its prompt."""
    num_top, plain = sampling.logprobs, msgspec.structs.replace(sampling, logprobs=None)
    fields = {"max_new_tokens": sampling.max_tokens, **fields_of(plain, _NAMES, "SGLang's native API")}
    body: dict[str, Any] = {"sampling_params": fields}
    return body if num_top is None else {**body, "return_logprob": True, "top_logprobs_num": num_top}


def _delta(event: dict[str, Any], index: int, known: dict[int, str]) -> Delta:
    """What is new in an event. Text that begins with all that is known repeats it."""
    text, meta, before = event["text"], event["meta_info"], known.get(index, "")
    new = text[len(before) :] if text.startswith(before) else text
    known[index] = before + new
    finish = finish_of(meta.get("finish_reason"))
    scores = [TokenLogprobs(token, value) for value, token, *_ in meta.get("output_token_logprobs") or ()]
    return Delta(
        index=index, text=new, logprobs=scores if finish else [], finish=finish, usage=_usage(meta) if finish else None
    )


def _usage(meta: dict[str, Any]) -> Usage:
    prompt, completion, cached = (meta.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion", "cached"))
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def _last(row: Sequence[Any], size: int) -> tuple[TokenLogprobs, ...]:
    """The last tokens that together spell at least `size` characters."""
    found: list[TokenLogprobs] = []
    for value, token, text in reversed(row):
        if size <= 0:
            break
        size -= len(text or "")
        found.append(TokenLogprobs(token, value or 0.0))
    return tuple(reversed(found))
