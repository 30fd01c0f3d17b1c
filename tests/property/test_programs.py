"""Random programs: compiled, interpreted and written by hand they give the same tokens, on the fake engine."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import radixlm as sgl
from radixlm.types import SamplingParams
from tests.fake_runner import continuation
from tests.http.harness import TOKENIZER
from tests.lang.harness import VOCAB, fake_backend

TEXT = st.text("ab <>\n\u00e9", max_size=8)
STEP = st.one_of(
    st.tuples(st.just("text"), TEXT),
    st.tuples(st.just("gen"), st.integers(1, 7), st.sampled_from([None, "a", "e", "\u00e9", " "])),
    st.tuples(st.just("read"), st.integers(0, 5)),
    st.tuples(st.just("role"), st.sampled_from(["user", "assistant"]), st.integers(1, 4)),
    st.tuples(st.just("fork"), st.integers(1, 3), st.integers(1, 5)),
    st.tuples(st.just("scope"), TEXT),
)


@pytest.fixture(scope="module")
def backend():
    with fake_backend() as backend:
        yield backend


def write(s, steps, *, peek: bool) -> None:  # noqa: C901
    """The steps as a program. `peek` reads every variable at once, so that nothing can be put off."""
    names: list[str] = []

    def gen(state, size, stop=None):
        name = f"v{len(names)}"
        names.append(name)
        state += sgl.gen(name, max_tokens=size, stop=stop)
        if peek:
            assert isinstance(state[name], str)
        return name

    for step in steps:
        match step:
            case "text", text:
                s += text
            case "gen", size, stop:
                gen(s, size, stop)
            case "read", index:
                if names and (name := names[index % len(names)]) in s:
                    s += s[name] if not isinstance(s._track.variables[name], list) else s[name][0]
            case "role", role, size:
                with getattr(s, role)():
                    gen(s, size)
                    s += "  z"
            case "fork", count, size:
                forks = s.fork(count)
                made = []
                for i, branch in enumerate(forks):
                    branch += f"[{i}]"
                    made.append(gen(branch, size))
                forks.join()
                for branch, name in zip(forks, made):
                    s += branch[name]
            case "scope", text:
                with s.var_scope("scope"):
                    s += text
                    gen(s, 2)


class ByHand:
    """The same programs with nothing but the oracle: all text between generated tokens is tokenised as one."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.literal = ""

    def copy(self):
        other = ByHand()
        other.tokens, other.text, other.literal = self.tokens.copy(), self.text, self.literal
        return other

    def add(self, text: str) -> None:
        self.text += text
        self.literal += text

    def gen(self, size: int, stop: str | None = None) -> str:
        self.tokens += TOKENIZER.encode(self.literal, add_special=False)
        self.literal = ""
        made: list[int] = []
        while len(made) < size:
            made.append(continuation(self.tokens + made, VOCAB))
            text = TOKENIZER.decode(made, skip_special=True)
            if made[-1] == 0:
                made.pop()
                break
            if stop and stop in text:
                text = text.partition(stop)[0]
                made = _cut(made, text)
                break
        text = TOKENIZER.decode(made, skip_special=True)
        self.tokens += made
        self.text += text
        return text


def _cut(tokens: list[int], text: str) -> list[int]:
    """The tokens (bytes) of what stands before the stop; broken bytes show as U+FFFD, so the text alone cannot say."""
    for end in range(len(tokens) + 1):
        if TOKENIZER.decode(tokens[:end], skip_special=True) == text:
            return tokens[:end]
    raise AssertionError("a byte tokenizer cuts anywhere")


def by_hand(steps) -> tuple[str, list[str]]:  # noqa: C901
    s, known = ByHand(), list[str]()
    for step in steps:
        match step:
            case "text", text:
                s.add(text)
            case "gen", size, stop:
                known.append(s.gen(size, stop))
            case "read", index:
                if known:
                    s.add(known[index % len(known)])
            case "role", role, size:
                s.add(f"<{role}>")
                known.append(s.gen(size))
                s.add("  z\n")
            case "fork", count, size:
                made = []
                for i in range(count):
                    branch = s.copy()
                    branch.add(f"[{i}]")
                    made.append(branch.gen(size))
                known += made
                for text in made:
                    s.add(text)
            case "scope", text:
                s.add(text)
                known.append(s.gen(2))
    return s.text, known


@given(st.lists(STEP, min_size=1, max_size=7))
@example([("text", "a "), ("text", "><< \n"), ("gen", 1, None), ("text", "<<<<<<"), ("gen", 1, None), ("gen", 1, None)])
@example([("fork", 1, 1), ("text", "a"), ("gen", 4, "a"), ("gen", 1, None)])  # a broken character before a stop
@settings(max_examples=60, deadline=None)
def test_compiled_interpreted_and_by_hand_are_the_same(backend, steps):
    steps = [("text", "Begin:"), *steps]

    @sgl.function
    def compiled(s):
        write(s, steps, peek=False)

    @sgl.function
    def interpreted(s):
        write(s, steps, peek=True)

    one = compiled.run(backend=backend, temperature=0)
    two = interpreted.run(backend=backend, temperature=0)
    text, values = by_hand(steps)
    assert one.text() == two.text() == text
    contexts = [state._run.ledger.contexts[0] for state in (one, two)]
    assert contexts[0] == contexts[1]
    found = [v for track in one._run.tracks for v in _values(one, track)]
    assert sorted(found) == sorted(values)
    assert compiled._dependent is None
    assert interpreted._dependent is not None or not values


def _values(state, track):
    from radixlm.lang.ir import Gen

    return [state._run.ledger.values[track.id, node.name] for node in track.nodes if isinstance(node, Gen)]


@given(
    st.lists(
        st.tuples(TEXT.filter(bool), st.integers(1, 6), st.sampled_from([(), ("a",), ("b", "e")])),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=30, deadline=None)
def test_a_script_gives_the_tokens_of_its_parts_asked_for_one_by_one(backend, parts):
    from radixlm.engine.validate import Stretch
    from radixlm.lang.ir import Context
    from radixlm.lang.sequence import Sequence

    stretches = [
        Stretch(text if i else "", SamplingParams(max_tokens=size, temperature=0, stop=stop))
        for i, (text, size, stop) in enumerate(parts)
    ]

    async def together():
        before = Sequence(Context())
        before.add(parts[0][0])
        return [d.kept async for d in backend.model.script(before, stretches) if d.finish is not None]

    async def apart():
        before, found = Sequence(Context()), []
        for stretch, (text, _, _) in zip(stretches, parts):
            before.add(text)
            only = Stretch("", stretch.sampling)
            async for delta in backend.model.script(before, [only]):
                if delta.finish is not None:
                    found.append(delta.kept)
                    before.generated("", delta.kept)
        return found

    assert backend.submit(together()).result(30) == backend.submit(apart()).result(30)
