"""POST /encode: vectors of prompts as SGLang's clients know them, of length 1."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from radixlm.engine.output import Embedding
from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.serve.convert import refuse_unsupported, split_prompts
from radixlm.serve.embeddings import pooled, unit
from radixlm.serve.replies import Encoded
from radixlm.serve.routes import Row
from radixlm.serve.schema import Encode
from radixlm.serve.surface import Surface

_NAMES = {"namespace": "cache_salt", "label": "rid", "timeout_s": "timeout"}


class Encoder(Surface):
    """The route of vectors in SGLang's words."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        answer = Encoded | list[Encoded]
        return [replace(self.post("/encode", self.encode, Encode, answer), methods=("POST", "PUT"))]

    async def encode(self, body: Encode) -> list[dict[str, Any]] | dict[str, Any]:
        """POST /encode: {embedding, meta_info}, a list of them for a list of prompts."""
        start = time.perf_counter()
        refuse_unsupported(body, ("image_data", "audio_data", "video_data", "lora_path"))
        asked, is_list = _requests(body)
        found = await self.frontend.embed(await self.frontend.prepare(asked))
        took_s = time.perf_counter() - start
        answers = [_answer(each, item.label, took_s) for each, item in zip(found, asked)]
        return answers if is_list else answers[0]


def _requests(body: Encode) -> tuple[list[GenerateRequest], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("send one of text and input_ids", param="text")
    name = "text" if body.text is not None else "input_ids"
    prompts, is_list = split_prompts(body.text if body.text is not None else body.input_ids or [], name)
    rids = body.rid if isinstance(body.rid, list) else [body.rid or ""] * len(prompts)
    if len(rids) != len(prompts):
        raise InvalidRequest(f"rid has {len(rids)} entries for {len(prompts)} prompts; send one for each", param="rid")
    names = {**_NAMES, "prompt": name}
    return [pooled(prompt, body, "last", rid, names) for prompt, rid in zip(prompts, rids)], is_list


def _answer(found: Embedding, rid: str, took_s: float) -> dict[str, Any]:
    meta = {
        "id": rid or uuid.uuid4().hex,
        "finish_reason": {"type": "length", "length": 0},
        "prompt_tokens": found.usage.prompt_tokens,
        "cached_tokens": found.usage.cached_tokens,
        "e2e_latency": took_s,
    }
    return {"embedding": unit(found).tolist(), "meta_info": meta}
