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

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.engine.output import Embedding
from radixlm.errors import InvalidRequest, UnknownModel
from radixlm.serve.convert import split_prompts
from radixlm.serve.embeddings import pooled, unit
from radixlm.serve.ollama_answer import ERRORS
from radixlm.serve.ollama_schema import OllamaEmbed, OllamaEmbedOne, OllamaModel, OllamaVectors
from radixlm.serve.routes import Row
from radixlm.serve.schema import Pooled
from radixlm.serve.surface import Surface
from radixlm.types import Json

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

    def rows(self) -> list[Row]:
        """The table of these routes."""
        facts = dict[str, Any]
        rows = [
            self.get("/api/tags", self.tags, facts),
            self.get("/api/ps", self.running, facts),
            self.post("/api/show", self.show, OllamaModel, facts),
            self.get("/api/version", self.version, facts),
            self.post("/api/embed", self.embed, OllamaEmbed, OllamaVectors),
            self.post("/api/embeddings", self.embed_one, OllamaEmbedOne, facts),
        ]
        return [replace(row, errors=ERRORS) for row in rows]

    async def tags(self) -> Json:
        """GET /api/tags: the models there are."""
        return {"models": [self._card()]}

    async def running(self) -> Json:
        """GET /api/ps: the models that are loaded."""
        info = self.frontend.engine.info
        held = info.weight_bytes + info.kv_bytes
        on_device = 0 if info.device == "cpu" else held
        fields = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": on_device, "context_length": info.context_length}
        return {"models": [{**self._card(), "size": held, **fields}]}

    async def show(self, body: OllamaModel) -> Json:
        """POST /api/show: what the model is and can do."""
        self.check_tag(body.model or body.name)
        info = self.frontend.engine.info
        facts = {
            "general.architecture": info.architecture,
            f"{info.architecture}.context_length": info.context_length,
            f"{info.architecture}.vocab_size": info.vocab_size,
        }
        return {
            "modelfile": f"FROM {self._name}\n",
            "parameters": "",
            "template": self.frontend.template.text,
            "details": self._details(),
            "model_info": facts,
            "capabilities": ["completion", "tools", *(["thinking"] if self.reply_format.reasoning else [])],
            "modified_at": self._started,
        }

    async def version(self) -> Json:
        """GET /api/version: of the API."""
        return {"version": API_VERSION}

    async def embed(self, body: OllamaEmbed) -> OllamaVectors:
        """POST /api/embed: vectors of length 1, one for each text."""
        start = time.perf_counter()
        self.check_tag(body.model)
        if body.dimensions is not None and body.dimensions < 1:
            raise InvalidRequest(f"dimensions is {body.dimensions}; it must be at least 1", param="dimensions")
        texts, _ = split_prompts(body.input, "input")
        found = await self._vectors(texts, "input")
        return OllamaVectors(
            model=body.model,
            embeddings=[unit(each, body.dimensions).tolist() for each in found],
            total_duration=int((time.perf_counter() - start) * _NS),
            load_duration=0,
            prompt_eval_count=sum(each.usage.prompt_tokens for each in found),
        )

    async def embed_one(self, body: OllamaEmbedOne) -> Json:
        """POST /api/embeddings: the older form, for one text."""
        self.check_tag(body.model)
        (found,) = await self._vectors([body.prompt], "prompt")
        return {"embedding": np.frombuffer(found.vector, dtype="<f4").tolist()}

    async def _vectors(self, texts: list[Any], name: str) -> list[Embedding]:
        asked = [pooled(text, Pooled(), "mean", "", {"prompt": name}) for text in texts]
        return await self.frontend.embed(await self.frontend.prepare(asked))

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
