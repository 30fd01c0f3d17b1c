"""What Ollama's clients ask about the model, and its vectors: /api/tags, /api/ps, /api/show, /api/version, /api/embed.

The one model of this server has the tag latest.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.output import Embedding
from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest, UnknownModel
from radixlm.serve.convert import split_prompts
from radixlm.serve.embeddings import unit
from radixlm.serve.ollama_answer import ERRORS
from radixlm.serve.ollama_schema import OllamaEmbed, OllamaEmbedOne, OllamaModel, OllamaVectors
from radixlm.serve.reader import format_of
from radixlm.serve.routes import Row
from radixlm.serve.sse import until_disconnect
from radixlm.serve.surface import Surface
from radixlm.types import Json, SamplingParams

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is: clients switch features on and off by it."""
_NS = 1_000_000_000


class OllamaSurface(Surface):
    """Surface whose model may be called by its tag."""

    def check_tag(self, name: str | None) -> None:
        """Raises UnknownModel in the words that these clients look for."""
        try:
            self.check_model((name or "").removesuffix(":latest"))
        except UnknownModel as error:
            raise UnknownModel(f"{error.message} (model not found)", param="model") from None


class OllamaModels(OllamaSurface):
    """The routes about the model."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._started = datetime.now(UTC).isoformat()
        self._reasons = format_of(frontend, config).reasoning is not None

    def rows(self) -> list[Row]:
        """The table of these routes."""
        post, facts = ("POST",), dict[str, Any]
        rows = [
            Row("/api/tags", self.tags, "inference", answer=facts),
            Row("/api/ps", self.running, "inference", answer=facts),
            Row("/api/show", self.show, "inference", post, OllamaModel, answer=facts),
            Row("/api/version", self.version, "inference", answer=facts),
            Row("/api/embed", self.embed, "inference", post, OllamaEmbed, answer=OllamaVectors),
            Row("/api/embeddings", self.embed_one, "inference", post, OllamaEmbedOne, answer=facts),
        ]
        return [replace(row, errors=ERRORS) for row in rows]

    async def tags(self, request: Request) -> Response:
        """GET /api/tags: the models there are."""
        del request
        return JSONResponse({"models": [self._card()]})

    async def running(self, request: Request) -> Response:
        """GET /api/ps: the models that are loaded."""
        del request
        info = self.frontend.engine.info
        held = info.weight_bytes + info.kv_bytes
        on_device = 0 if info.device == "cpu" else held
        fields = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": on_device, "context_length": info.context_length}
        return JSONResponse({"models": [{**self._card(), "size": held, **fields}]})

    async def show(self, request: Request) -> Response:
        """POST /api/show: what the model is and can do."""
        body, headers = await self.read(request, OllamaModel)
        self.check_tag(body.model or body.name)
        info = self.frontend.engine.info
        facts = {
            "general.architecture": info.architecture,
            f"{info.architecture}.context_length": info.context_length,
            f"{info.architecture}.vocab_size": info.vocab_size,
        }
        answer = {
            "modelfile": f"FROM {self._name}\n",
            "parameters": "",
            "template": self.frontend.template.text,
            "details": self._details(),
            "model_info": facts,
            "capabilities": ["completion", "tools", *(["thinking"] if self._reasons else [])],
            "modified_at": self._started,
        }
        return JSONResponse(answer, headers=headers)

    async def version(self, request: Request) -> Response:
        """GET /api/version: of the API."""
        del request
        return JSONResponse({"version": API_VERSION})

    async def embed(self, request: Request) -> Response:
        """POST /api/embed: vectors of length 1, one for each text."""
        start = time.perf_counter()
        body, headers = await self.read(request, OllamaEmbed)
        self.check_tag(body.model)
        if body.dimensions is not None and body.dimensions < 1:
            raise InvalidRequest(f"dimensions is {body.dimensions}; it must be at least 1", param="dimensions")
        texts, _ = split_prompts(body.input, "input")
        found = await self._vectors(request, texts, "input")
        vectors = [unit(np.frombuffer(each.vector, dtype="<f4")[: body.dimensions]).tolist() for each in found]
        cost = {"total_duration": int((time.perf_counter() - start) * _NS), "load_duration": 0}
        count = sum(each.usage.prompt_tokens for each in found)
        return JSONResponse(
            {"model": body.model, "embeddings": vectors, **cost, "prompt_eval_count": count}, 200, headers
        )

    async def embed_one(self, request: Request) -> Response:
        """POST /api/embeddings: the older form, for one text."""
        body, headers = await self.read(request, OllamaEmbedOne)
        self.check_tag(body.model)
        (found,) = await self._vectors(request, [body.prompt], "prompt")
        return JSONResponse({"embedding": np.frombuffer(found.vector, dtype="<f4").tolist()}, 200, headers)

    async def _vectors(self, request: Request, texts: list[Any], name: str) -> list[Embedding]:
        names, sampling = {"prompt": name}, SamplingParams(max_tokens=0)
        asked = [GenerateRequest(prompt=text, sampling=sampling, pooling="mean", names=names) for text in texts]
        prepared = await until_disconnect(self.frontend.prepare(asked), request.receive)
        return await until_disconnect(self.frontend.embed(prepared), request.receive)

    @property
    def _name(self) -> str:
        return self.model if ":" in self.model else f"{self.model}:latest"

    def _card(self) -> Json:
        digest = hashlib.sha256(self._name.encode()).hexdigest()
        size = self.frontend.engine.info.weight_bytes
        names = {"name": self._name, "model": self._name, "modified_at": self._started}
        return {**names, "size": size, "digest": digest, "details": self._details()}

    def _details(self) -> Json:
        info = self.frontend.engine.info
        return {
            "parent_model": "",
            "format": self.config.load_format,
            "family": info.architecture,
            "families": [info.architecture],
            "parameter_size": "",
            "quantization_level": info.dtype,
        }
