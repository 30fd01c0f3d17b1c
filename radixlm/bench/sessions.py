"""What users send: sessions of turns. A turn's prompt is the whole history, the engine's own outputs included.

Everything is drawn from a seed, so every server gets the same load. Prompts are random token ids (tokenisation out of the
way, lengths exact) or, for constrained output, text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import msgspec

Range = tuple[int, int]
LOWEST_TOKEN = 100  # special tokens live below
BRANCHES = 3  # of every inner node of a tree

RECORD_SCHEMA = (
    '{"type":"object","properties":{"name":{"type":"string","maxLength":24},"age":{"type":"integer","minimum":0,'
    '"maximum":120},"city":{"type":"string","maxLength":24},"tags":{"type":"array","items":{"type":"string",'
    '"maxLength":12},"maxItems":3}},"required":["name","age","city","tags"],"additionalProperties":false}'
)
_NAMES = ("Ada", "Boris", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
_CITIES = ("Accra", "Bergen", "Cusco", "Delft", "Essen", "Fukuoka", "Ghent", "Hobart", "Izmir", "Jaipur")


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """`new` is appended to the history (token ids, or text in all turns of a session), then `max_tokens` are generated."""

    new: list[int] | str
    max_tokens: int
    schema: str = ""  # a JSON schema that the output must meet; empty: none, and the end token is ignored


class Session(msgspec.Struct, frozen=True, array_like=True):
    """One conversation. `start_s` is when it begins in an open loop, else 0."""

    turns: list[Turn]
    start_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A load: who comes when with what. Lengths are inclusive ranges in tokens, drawn uniformly per turn.

    Closed loop: `users` take one session after the other without a pause. With a `rate` sessions arrive by a Poisson
    process of that many per second, however many are open. `groups` is the number of different shared beginnings.
    """

    kind: str = "tokens"
    users: int = 1
    sessions: int = 1
    turns: int = 1
    shared: int = 0
    groups: int = 1
    input: Range = (512, 512)
    output: Range = (256, 256)
    rate: float = 0.0

    def draw(self, seed: int, vocab_size: int) -> list[Session]:
        """The sessions in order of arrival. The same seed draws the same load."""
        draw = Draw(f"load {seed}", vocab_size)
        sessions = [Session(turns) for turns in KINDS[self.kind](self, draw)]
        return _arrivals(sessions, self.rate, draw) if self.rate else sessions

    def scaled(self, factor: float) -> Workload:
        """Smaller or larger in users, sessions and all lengths; nothing falls below 1 (0 stays 0)."""

        def of(value: int) -> int:
            return max(1, round(value * factor)) if value else 0

        def both(bounds: Range) -> Range:
            return of(bounds[0]), of(bounds[1])

        users, sessions, shared = of(self.users), of(self.sessions), of(self.shared)
        lengths = {"input": both(self.input), "output": both(self.output)}
        return replace(self, users=users, sessions=sessions, shared=shared, **lengths)


class Draw:
    """Random tokens and lengths, the same for the same seed. The lowest ids are left out: special tokens live there."""

    def __init__(self, seed: str, vocab_size: int) -> None:
        self.source = random.Random(seed)
        self._population = range(min(LOWEST_TOKEN, vocab_size // 2), vocab_size)

    def tokens(self, count: int) -> list[int]:
        """So many token ids."""
        return self.source.choices(self._population, k=count)

    def length(self, bounds: Range) -> int:
        """One of these, both inclusive."""
        return self.source.randint(*bounds)


def _conversations(load: Workload, draw: Draw) -> Iterator[list[Turn]]:
    """Random token ids after a shared beginning: one turn or many."""
    beginnings = [draw.tokens(load.shared) for _ in range(load.groups)]
    for index in range(load.sessions):
        new = [draw.tokens(draw.length(load.input)) for _ in range(load.turns)]
        new[0] = beginnings[index % load.groups] + new[0]
        yield [Turn(tokens, draw.length(load.output)) for tokens in new]


def _trees(load: Workload, draw: Draw) -> Iterator[list[Turn]]:
    """Searches in trees of thoughts, level by level: a request per node, its prompt the problem and the path to it."""
    level = [draw.tokens(load.shared) for _ in range(load.groups)]
    count = 0
    for _ in range(load.turns):
        level = [path + draw.tokens(draw.length(load.input)) for path in level for _ in range(BRANCHES)]
        for path in level:
            if count < load.sessions:
                count += 1
                yield [Turn(path, draw.length(load.output))]


def _records(load: Workload, draw: Draw) -> Iterator[list[Turn]]:
    """Text to be turned into a JSON object of a given schema; instruction and schema are shared by all."""
    for _ in range(load.sessions):
        name, city = draw.source.choice(_NAMES), draw.source.choice(_CITIES)
        text = f"Write the person as JSON by this schema: {RECORD_SCHEMA}\n{name} is {draw.source.randint(18, 90)}"
        yield [Turn(f"{text}, lives in {city} and likes chess, tea and maps.\n", load.output[1], RECORD_SCHEMA)]


KINDS: dict[str, Callable[[Workload, Draw], Iterator[list[Turn]]]] = {
    "tokens": _conversations,
    "tree": _trees,
    "json": _records,
}


def _arrivals(sessions: list[Session], rate: float, draw: Draw) -> list[Session]:
    starts = accumulate(draw.source.expovariate(rate) for _ in sessions)
    return [Session(session.turns, start_s) for session, start_s in zip(sessions, starts)]


WORKLOADS = {
    "single": Workload(users=1, sessions=8),
    "chat50": Workload(users=50, sessions=300, turns=4, shared=112, input=(64, 64), output=(96, 96)),
    "burst": Workload(users=256, sessions=256),
    "mixed": Workload(users=256, sessions=256, input=(100, 1024), output=(100, 1024)),
    "prefix": Workload(users=512, sessions=512, shared=2048, groups=16, input=(64, 64), output=(32, 32)),
    "ctx8k": Workload(users=32, sessions=32, input=(8000, 8000), output=(128, 128)),
    "few-shot": Workload(users=64, sessions=512, shared=750, groups=8, input=(100, 200), output=(1, 8)),
    "tree": Workload(
        kind="tree", users=64, sessions=480, turns=4, shared=512, groups=4, input=(64, 64), output=(64, 64)
    ),
    "json": Workload(kind="json", users=32, sessions=128, output=(96, 96)),
    "poisson": Workload(sessions=400, turns=1, input=(256, 768), output=(64, 192), rate=8.0),
}
