"""POST /v1/embeddings, and /encode in SGLang's words: vectors of texts, of length 1, pooled over the final hidden states."""

from __future__ import annotations

import base64
import time
import uuid
from dataclasses import replace
from typing import Any

import numpy as np

from radixlm.engine.output import Embedding
from radixlm.engine.validate import MAX_BATCH, GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.serve import schema
from radixlm.serve.convert import Text, refuse_unsupported, split_prompts
from radixlm.serve.replies import EmbeddingList, Encoded
from radixlm.serve.routes import Row
from radixlm.serve.surface import NAMES, Surface
from radixlm.types import Pooling, SamplingParams

MAX_INPUTS = 2048
_NAMES = {**NAMES, "prompt": "input"}


class Embeddings(Surface):
    """The routes of vectors."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        encode = self.post("/encode", self.encode, schema.Encode, Encoded | list[Encoded])
        create = self.post("/v1/embeddings", self.create, schema.EmbeddingRequest, EmbeddingList)
        return [replace(encode, methods=("POST", "PUT")), create]

    async def create(self, body: schema.EmbeddingRequest) -> dict[str, Any]:
        """POST /v1/embeddings."""
        self.check_model(body.model)
        found = await self._embed(_requests(body))
        data = [_item(body, index, embedding) for index, embedding in enumerate(found)]
        prompt = sum(embedding.usage.prompt_tokens for embedding in found)
        cached = sum(embedding.usage.cached_tokens for embedding in found)
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": prompt, "total_tokens": prompt, "prompt_tokens_details": details}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    async def _embed(self, requests: list[GenerateRequest]) -> list[Embedding]:
        """All of them, as many at a time as one request may hold."""
        size = min(MAX_BATCH, self.frontend.limits.max_open)
        found: list[Embedding] = []
        for start in range(0, len(requests), size):
            prepared = await self.frontend.prepare(requests[start : start + size])
            found += await self.frontend.embed(prepared)
        return found

    async def encode(self, body: schema.Encode) -> list[dict[str, Any]] | dict[str, Any]:
        """POST /encode: {embedding, meta_info}, a list of them for a list of prompts."""
        start = time.perf_counter()
        refuse_unsupported(body, ("image_data", "audio_data", "video_data", "lora_path"))
        asked, is_list = _to_encode(body)
        found = await self.frontend.embed(await self.frontend.prepare(asked))
        answers = [_encoded(each, item.label, time.perf_counter() - start) for each, item in zip(found, asked)]
        return answers if is_list else answers[0]


def _requests(body: schema.EmbeddingRequest) -> list[GenerateRequest]:
    if body.input is None:
        raise InvalidRequest("input is absent; send a text, token ids, or a list of either", param="input")
    prompts, _ = split_prompts(body.input, "input")
    if len(prompts) > MAX_INPUTS:
        raise InvalidRequest(f"input holds {len(prompts)} texts, the limit is {MAX_INPUTS}; split it", param="input")
    return [pooled(prompt, body, "mean", body.rid or "", _NAMES) for prompt in prompts]


def pooled(prompt: Text, body: schema.Pooled, default: Pooling, label: str, names: dict[str, str]) -> GenerateRequest:
    """The request for the vector of one prompt."""
    return GenerateRequest(
        prompt=prompt,
        sampling=SamplingParams(max_tokens=0),
        pooling=body.pooling or default,
        namespace=body.cache_salt or "",
        priority=body.priority or 0,
        timeout_s=body.timeout,
        label=label,
        names=names,
    )


def _item(body: schema.EmbeddingRequest, index: int, embedding: Embedding) -> dict[str, Any]:
    length, size = len(embedding.vector) // 4, body.dimensions
    if size is not None and not 1 <= size <= length:
        text = f"dimensions is {size}; this model's vectors have {length}, ask for 1 to as many"
        raise InvalidRequest(text, param="dimensions")
    vector = unit(embedding, size)
    encoded = base64.b64encode(vector.tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": encoded}


def unit(embedding: Embedding, size: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Its vector, the first `size` numbers, with length 1; one of zeros stays."""
    vector = np.frombuffer(embedding.vector, dtype="<f4")[:size]
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length if length else vector).astype("<f4")


def _to_encode(body: schema.Encode) -> tuple[list[GenerateRequest], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("send one of text and input_ids", param="text")
    name = "text" if body.text is not None else "input_ids"
    prompts, is_list = split_prompts(body.text if body.text is not None else body.input_ids or [], name)
    rids = body.rid if isinstance(body.rid, list) else [body.rid or ""] * len(prompts)
    if len(rids) != len(prompts):
        raise InvalidRequest(f"rid has {len(rids)} entries for {len(prompts)} prompts; send one for each", param="rid")
    names = {**NAMES, "prompt": name}
    return [pooled(prompt, body, "last", rid, names) for prompt, rid in zip(prompts, rids)], is_list


def _encoded(found: Embedding, rid: str, took_s: float) -> dict[str, Any]:
    meta = {
        "id": rid or uuid.uuid4().hex,
        "finish_reason": {"type": "length", "length": 0},
        "prompt_tokens": found.usage.prompt_tokens,
        "cached_tokens": found.usage.cached_tokens,
        "e2e_latency": took_s,
    }
    return {"embedding": unit(found).tolist(), "meta_info": meta}
