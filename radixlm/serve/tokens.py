"""POST /tokenize and POST /detokenize: what the model's tokenizer and chat template make of a text, without running it."""

from __future__ import annotations

from typing import Any

from radixlm.engine.validate import Chat, GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.serve.convert import is_tokens
from radixlm.serve.replies import Detokenized, Tokenized
from radixlm.serve.routes import Row, spelled
from radixlm.serve.schema import Detokenize, Tokenize
from radixlm.serve.surface import Surface
from radixlm.text.template import ChatOptions

_MAX_TEXTS = 256


class Tokens(Surface):
    """The routes of the tokenizer."""

    def rows(self) -> list[Row]:
        """The table of these routes."""
        tokenize = self.post("/tokenize", self.tokenize, Tokenize, Tokenized)
        detokenize = self.post("/detokenize", self.detokenize, Detokenize, Detokenized)
        return [*spelled(tokenize, "/v1/tokenize"), *spelled(detokenize, "/v1/detokenize")]

    async def tokenize(self, body: Tokenize) -> Tokenized:
        """POST /tokenize: {tokens, count, max_model_len}; lists of them for a list of prompts."""
        tokens, length = await self._tokens(body), self.frontend.engine.info.context_length
        if isinstance(body.prompt, list):
            return Tokenized(tokens=tokens, count=[len(each) for each in tokens], max_model_len=length)
        return Tokenized(tokens=tokens[0], count=len(tokens[0]), max_model_len=length)

    async def detokenize(self, body: Detokenize) -> Detokenized:
        """POST /detokenize: {text}; a list of them for a list of lists."""
        if is_tokens(body.tokens):
            return Detokenized(text=self._text(body.tokens, body, "tokens"))
        _check_number_of(body.tokens, "tokens")
        return Detokenized(text=[self._text(item, body, f"tokens[{i}]") for i, item in enumerate(body.tokens)])

    async def _tokens(self, body: Tokenize) -> list[list[int]]:
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("send one of prompt and messages", param="prompt")
        if body.messages is not None:
            found = await self.frontend.tokens_of(_conversation(body))
            return [found.tolist()]
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt or ""]
        _check_number_of(texts, "prompt")
        special = body.add_special_tokens is not False
        return [await self.frontend.encode(text, add_special=special) for text in texts]

    def _text(self, tokens: Any, body: Detokenize, name: str) -> str:
        if not isinstance(tokens, list):
            raise InvalidRequest(f"{name} is a token id among lists; send all ids or all lists", param="tokens")
        size = self.frontend.engine.info.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise InvalidRequest(f"{name} holds {token}; token ids go from 0 to {size - 1}", param="tokens")
        return self.frontend.tokenizer.decode(tokens, skip_special=body.skip_special_tokens is not False)


def _check_number_of(items: list[Any], name: str) -> None:
    if len(items) > _MAX_TEXTS:
        raise InvalidRequest(f"{name} holds {len(items)} items, the limit is {_MAX_TEXTS}; split it", param=name)


def _conversation(body: Tokenize) -> GenerateRequest:
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    options = ChatOptions(
        add_generation_prompt=begins, continue_final_message=continues, extra=body.chat_template_kwargs or {}
    )
    chat = Chat(messages=tuple(body.messages or ()), tools=tuple(body.tools or ()), options=options)
    return GenerateRequest(prompt=chat, names={"prompt": "messages"})
