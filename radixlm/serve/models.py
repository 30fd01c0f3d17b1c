"""GET /v1/models: what OpenAI's and Anthropic's clients ask of a server beside answers, in the words of both."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from radixlm.config import Config
from radixlm.engine.frontend import Frontend
from radixlm.serve.replies import ModelCard, ModelList
from radixlm.serve.routes import Row
from radixlm.serve.surface import Surface, as_json


class Models(Surface):
    """The routes of the model list."""

    def __init__(self, frontend: Frontend, config: Config) -> None:
        super().__init__(frontend, config)
        self._created = int(time.time())

    def rows(self) -> list[Row]:
        """The table of these routes."""
        one = Row("/v1/models/{id:path}", self.one, "inference", answer=ModelCard)
        return [self.get("/v1/models", self.all, ModelList), one]

    async def all(self) -> ModelList:
        """GET /v1/models."""
        return ModelList(object="list", data=[self._card()], has_more=False, first_id=self.model, last_id=self.model)

    async def one(self, request: Request) -> Response:
        """GET /v1/models/{id}; the id may hold slashes."""
        self.check_model(request.path_params["id"])
        return as_json(self._card())

    def _card(self) -> ModelCard:
        return ModelCard(
            id=self.model,
            object="model",
            created=self._created,
            owned_by="radixlm",
            root=self.config.model,
            max_model_len=self.frontend.engine.info.context_length,
            type="model",
            display_name=self.model,
            created_at=datetime.fromtimestamp(self._created, UTC).isoformat(),
        )
