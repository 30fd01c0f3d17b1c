"""An engine in this process as a model for programs: scripts go to it whole, options are scored in one wave."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cached_property, lru_cache

import msgspec

from radixlm.engine.frontend import Frontend
from radixlm.engine.output import Completion, Delta, Usage
from radixlm.engine.scripts import kept_tokens
from radixlm.engine.validate import MAX_PARTS, GenerateRequest, Stretch
from radixlm.errors import Error, InvalidRequest
from radixlm.lang.chat import TemplateChat
from radixlm.lang.execute import Scored, Scores, total
from radixlm.lang.ir import Context, Program, constant_nodes
from radixlm.lang.sequence import Sequence as Held
from radixlm.messages import TokenLogprobs
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import SamplingParams

WORTH_PINNING = 32  # tokens shared by a batch


class Encoder:
    """A tokenizer that remembers what it was asked, for programs repeat their texts.

    A special token is a border that no other token crosses, so a text is cut before each.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary
        spelled = tokenizer.borders if vocabulary.exact and not vocabulary.strips_space else ()
        self._border = re.compile(f"(?={'|'.join(map(re.escape, spelled))})") if spelled else None
        self._stretch = lru_cache(1024)(self._encode)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """As `Tokenizer.encode`. Raises InvalidRequest for text that is no Unicode."""
        if add_special or self._border is None:
            return list(self._stretch(text, add_special))
        return [token for part in self._border.split(text) if part for token in self._stretch(part, False)]

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special=special))


class EngineModel:
    """Used from the frontend's event loop. No more requests are open at once than the engine takes."""

    max_parts = MAX_PARTS
    across_messages = True

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._encoder = Encoder(frontend.tokenizer)
        self._door = asyncio.Lock()
        self._chat = lru_cache(64)(lambda tools: TemplateChat(frontend.template, msgspec.json.decode(tools)))

    def chat(self, program: Program) -> TemplateChat:
        """As `Model.chat`."""
        return self._chat(msgspec.json.encode(program.tools))

    @asynccontextmanager
    async def together(self, programs: Sequence[Program]) -> AsyncIterator[Sequence[int]]:
        """As `Model.together`: neighbours share most; what all share is computed once, first, and pinned until the end."""
        if len(programs) == 1:
            yield (0,)
            return
        begins = [self._beginning(program) for program in programs]
        order = sorted(range(len(programs)), key=lambda i: begins[i].text)
        first, last = self.tokens(begins[order[0]]), self.tokens(begins[order[-1]])
        shared = first[: _common(first, last)]  # of sorted ones, all between share it too
        pinning = asyncio.ensure_future(self._pin(shared)) if len(shared) >= WORTH_PINNING else None
        try:
            await asyncio.sleep(0)  # the pin leaves now: the engine computes it while the instances are tokenised
            yield order
        finally:
            if pinning is not None:
                pin = await pinning
                with contextlib.suppress(Error):
                    await self._frontend.unpin(pin) if pin else None

    def _beginning(self, program: Program) -> Held:
        """What stands before anything is generated."""
        root = program.branches[0]
        held, chat = Held(root.context or Context()), self.chat(program)
        try:
            for node in constant_nodes(root):
                held.apply(node, chat)
        except (Error, IndexError):
            return Held(Context())  # running it will say what is wrong
        return held

    async def _pin(self, tokens: list[int]) -> str | None:
        try:
            async with self._enter(1):
                request = GenerateRequest(prompt=tokens)
                return (await self._frontend.pin(request)).id
        except Error:  # the quota is spent, or the engine is gone: the programs run all the same, or say so themselves
            return None

    def tokens(self, before: Held, more: str = "") -> list[int]:
        """What stands before, and a literal behind it, as tokens."""
        texts = [(piece.text, piece.tokens) for piece in before.pieces]
        if more or not texts:
            last = texts.pop() if texts and texts[-1][1] is None else ("", None)
            texts.append((last[0] + more, None))
        found: list[int] = []
        for index, (text, tokens) in enumerate(texts):
            special = not index and not before.framed
            found += self._encoder.encode(text, add_special=special) if tokens is None else tokens
        return found

    async def script(self, before: Held, parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        """As `Model.script`; parts that may not fit the context together go one after the other."""
        prompt, done = self.tokens(before), 0
        while done < len(parts):
            batch = parts[done : done + self._fitting(len(prompt), parts[done:])]
            async with aclosing(self._one(prompt.copy(), batch)) as deltas:
                async for delta in deltas:
                    if delta.finish is not None:
                        prompt += (self._literal(batch[delta.part]) if delta.part else []) + delta.kept
                    delta.part += done
                    yield delta
            done += len(batch)
            if done < len(parts):
                prompt += self._literal(parts[done])

    def _literal(self, part: Stretch) -> list[int]:
        assert isinstance(part.literal, str), "literal runs of programs are text"
        return self.literal(part.literal)

    def literal(self, text: str) -> list[int]:
        """The tokens of a literal that stands by itself."""
        return self._encoder.encode(text, add_special=False)

    def _fitting(self, num_prompt: int, parts: Sequence[Stretch]) -> int:
        """How many parts make one request: each with a literal run, all in the context even if each takes all that it may."""
        limits = self._frontend.limits
        room = min(limits.context, limits.pool_tokens) - num_prompt
        for count, part in enumerate(parts):
            most = part.sampling.max_tokens
            literal = self._literal(part) if count else []
            room -= len(literal) + (most or 0)
            if count and (room < 0 or not most or not literal):
                return count
            if not most:
                return 1
        return len(parts)

    async def _one(self, prompt: list[int], parts: Sequence[Stretch]) -> AsyncGenerator[Delta, None]:
        frontend, sampling = self._frontend, parts[0].sampling
        then = tuple(Stretch(self._literal(part), part.sampling) for part in parts[1:])
        request = GenerateRequest(prompt=prompt, sampling=sampling, then=then)
        tokens: list[list[int]] = [[] for _ in range(sampling.n)]
        prepared = await frontend.prepare([request])
        async with self._enter(sampling.n), aclosing(frontend.stream(prepared)) as deltas:
            async for delta in deltas:
                so_far = tokens[delta.index]
                so_far[len(so_far) - delta.num_dropped :] = delta.tokens
                if not then and delta.finish is not None:
                    delta.kept = kept_tokens(tokens[delta.index], sampling, delta.finish, frontend.tokenizer)
                yield delta

    async def score(self, before: Held, options: Sequence[str], *, alone: bool) -> Scored:
        """As `Model.score`. An option is tokenised together with the text before it; what all options begin with is prompt."""
        base = self.tokens(before)
        if not base:
            raise InvalidRequest(
                "nothing stands before the choices that could make one likelier; write some text first"
            )
        sequences = [self.tokens(before, option) for option in options]
        start = min(len(base), *(_common(base, sequence) for sequence in sequences))
        start = min(start, *(len(sequence) - 1 for sequence in sequences))
        bare, spent = [sequence[start:] for sequence in sequences] if alone else [], list[Usage]()
        given, without = await asyncio.gather(
            self._scored(sequences, max(1, start), spent), self._scored(bare, 1, spent)
        )
        firsts = [TokenLogprobs(tokens[0], 0.0) for tokens in bare]
        return Scored(given, [(first, *scores) for first, scores in zip(firsts, without)], total(spent))

    async def _scored(self, sequences: Sequence[list[int]], start: int, spent: list[Usage]) -> Scores:
        """Log probabilities from position `start` on; one that begins another is scored together with it."""
        ordered = sorted(sequence for sequence in sequences if len(sequence) > start)
        leaves = [s for s, after in zip(ordered, [*ordered[1:], []]) if after[: len(s)] != s]
        answers = await asyncio.gather(*(self._prompted(leaf, start) for leaf in leaves))
        spent += [answer.usage for answer in answers]

        def of(sequence: list[int]) -> tuple[TokenLogprobs, ...]:
            found = (a.prompt_logprobs for leaf, a in zip(leaves, answers) if leaf[: len(sequence)] == sequence)
            return tuple(next(found, ())[: max(0, len(sequence) - start)])

        return [of(sequence) for sequence in sequences]

    async def _prompted(self, tokens: list[int], start: int) -> Completion:
        sampling = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=start)
        request = GenerateRequest(prompt=tokens, sampling=sampling)
        async with self._enter(1):
            (whole,) = await self._frontend.complete(await self._frontend.prepare([request]))
        return whole

    @asynccontextmanager
    async def _enter(self, count: int) -> AsyncGenerator[None, None]:
        """Holds the places of `count` requests; whoever waits for several waits alone."""
        held = 0
        try:
            async with self._door:
                while held < count:
                    await self._places.acquire()
                    held += 1
            yield
        finally:
            for _place in range(held):
                self._places.release()

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(max(16, self._frontend.limits.max_open))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return index
    return min(len(left), len(right))
