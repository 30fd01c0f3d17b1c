"""POST /v1/completions: texts or token ids in, text out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.serve import schema
from radixlm.serve.answer import OpenAIAnswer, TextShape
from radixlm.serve.convert import present, refuse_unsupported, split_prompts
from radixlm.serve.replies import TextAnswer
from radixlm.serve.routes import Row
from radixlm.serve.surface import NAMES, UNSUPPORTED, Surface, generating, make_request

_DEFAULT_TOKENS = 16


class Completions(Surface):
    """The route of text completions."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        return [generating("/v1/completions", self.create, schema.Completion, TextAnswer)]

    async def create(self, request: Request) -> Response:
        """POST /v1/completions."""
        body, headers = await self.read(request, schema.Completion)
        self.check_model(body.model)
        requests = _requests(body)
        prepared = await self.prepare(request, requests)
        shape = TextShape(self.frontend.tokenizer, prepared, echoes=bool(body.echo))
        answer = OpenAIAnswer(self.frontend, body, self.model, prepared, shape)
        return await self.respond(request, answer, headers, streams=body.stream)


def _requests(body: schema.Completion) -> list[GenerateRequest]:
    refuse_unsupported(body, UNSUPPORTED)
    if body.prompt is None:
        raise InvalidRequest("prompt is absent; send a text, token ids, or a list of either", param="prompt")
    if body.suffix:
        text = "suffix is set; this model only continues texts: put all of it into prompt, and leave suffix out"
        raise InvalidRequest(text, param="suffix")
    n = 1 if body.n is None else body.n
    if body.best_of not in (None, 1, n):
        raise InvalidRequest(f"best_of is {body.best_of}; it must equal n, {n}, or be left out", param="best_of")
    fields = present(logprobs=body.logprobs, prompt_logprobs=body.logprobs if body.echo else None)
    fields["max_tokens"] = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    names = {**NAMES, "logprobs": "logprobs", "prompt_logprobs": "logprobs"}
    prompts, _ = split_prompts(body.prompt, "prompt")
    is_default = body.max_tokens is None
    return [make_request(body, prompt, fields, names, max_tokens_is_default=is_default) for prompt in prompts]
