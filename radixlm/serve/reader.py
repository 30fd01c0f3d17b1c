"""How the replies to one request are read: the model's format, the request's tools, whether reasoning is kept apart.

Every chat surface makes one `ReplyReader` per request: `fields` go into its SamplingParams, `parser` reads a choice while it
comes, `reply` a whole one.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from radixlm.config import Config
from radixlm.engine.frontend import Frontend, Prepared
from radixlm.engine.output import Completion
from radixlm.engine.validate import GenerateRequest
from radixlm.errors import InvalidRequest
from radixlm.serve.tools import Tools
from radixlm.text.calls import SYNTAXES, CallSyntax
from radixlm.text.reply import Reply, ReplyFormat, ReplyParser

_TAIL_TOKENS = 16  # of a prompt: enough to see whether it opened the reasoning


class ReplyReader:
    """Reads the choices of one request. `tools` are those that may be called, `separates` whether reasoning is kept apart."""

    def __init__(self, frontend: Frontend, form: ReplyFormat, tools: Tools | None, *, separates: bool = True) -> None:
        self._tokenizer = frontend.tokenizer
        self._form = form
        self._tools = tools
        self._tags = form.reasoning if separates else None

    @property
    def own(self) -> CallSyntax:
        """How the model itself writes calls."""
        return self._form.calls

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of SamplingParams that reading the reply depends on."""
        words = [*(self._tags or ()), *([self.own.trigger] if self._tools else ())]
        hidden = any(self._tokenizer.token_id(word) in self._tokenizer.special_ids for word in words)
        constraint = self._tools.constraint(self.own) if self._tools else {}
        return {**constraint, "skip_special_tokens": False} if hidden else constraint

    @property
    def names(self) -> dict[str, str]:
        """What the client calls the fields that constrain calls, for error messages."""
        return dict.fromkeys(self._tools.constraint(self.own) if self._tools else (), "tools")

    def reconciled(self, asked: GenerateRequest) -> GenerateRequest:
        """The request, so that its reply may be calls as well as the JSON that a schema asks for."""
        sampling, tools = asked.sampling, self._tools
        if tools is None or tools.is_forced or sampling.json_schema is None:
            return asked
        if self.own is not SYNTAXES["hermes"]:
            return replace(asked, sampling=replace(sampling, structural_tag=None))
        either = {"json_schema": None, "structural_tag": None, "ebnf": tools.or_json(sampling.json_schema)}
        names = {**asked.names, "ebnf": asked.name("json_schema")}
        return replace(asked, sampling=replace(sampling, **either), names=names)

    def headers(self, headers: dict[str, str], config: Config) -> dict[str, str]:
        """Those that say what was ignored, with `tools.strict` where calls cannot be held to a schema."""
        if self._tools is None or not self._tools.leaves_open(self.own):
            return headers
        if config.strict_params:
            text = "the calls of this model are not JSON, so that strict tools hold under tool_choice required or a name only"
            raise InvalidRequest(text, param="tools")
        name, given = "x-ignored-params", "tools.strict"
        return {name: f"{headers[name]}, {given}" if name in headers else given}

    def parser(self, item: Prepared) -> ReplyParser | None:
        """For one choice of `item`; None if its text is all content."""
        if self._tools is None and self._tags is None:
            return None
        syntax = self._tools.syntax(self.own) if self._tools else None
        names, parallel = (self._tools.names, self._tools.parallel) if self._tools else ((), True)
        opened = self._opened(item)
        return ReplyParser(syntax, names, self._tags, in_reasoning=opened, parallel=parallel)

    def reply(self, item: Prepared, text: str) -> Reply:
        """A whole choice."""
        parser = self.parser(item)
        return Reply(text, "", ()) if parser is None else Reply.of(parser.push(text) + parser.finish())

    def reasoning_tokens(self, item: Prepared, completion: Completion) -> int:
        """How many of a choice's tokens are reasoning, its end tag included."""
        if self._tags is None:
            return 0
        begin, end = self._tags
        if not self._opened(item) and not completion.text.lstrip().startswith(begin):
            return 0
        token = self._tokenizer.token_id(end)
        if token in completion.tokens:
            return completion.tokens.index(token) + 1
        before, found, _ = completion.text.partition(end)
        return len(self._tokenizer.encode(before + found, add_special=False)) if found else len(completion.tokens)

    def _opened(self, item: Prepared) -> bool:
        if self._tags is None:
            return False
        return self._form.reasons_after(
            self._tokenizer.decode(item.tokens[-_TAIL_TOKENS:].tolist(), skip_special=False)
        )
