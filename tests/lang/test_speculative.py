"""Parts that come ahead are those that a request each gives, on a model whose every character depends on all before."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import radixlm as sgl
from radixlm.engine.output import Delta, Usage
from radixlm.lang.backends.remote import RemoteBackend
from radixlm.lang.chat import NoFrame
from radixlm.types import Finish

LETTERS = "abc:\n."


class Writer:
    """A model of characters: a token is one, and a hash of all before it chooses it. Or it says what it is told to, in turn."""

    max_parts = 1
    across_messages = False

    def __init__(self, says: list[str] | None = None) -> None:
        self.asked: list[str] = []
        self._says = iter(says) if says else None

    @asynccontextmanager
    async def together(self, programs):
        yield range(len(programs))

    def chat(self, program):
        return NoFrame()

    async def score(self, before, options, *, alone):
        raise NotImplementedError

    def _written(self, text: str) -> Iterator[str]:
        if self._says is not None:
            yield from next(self._says)
            return
        while True:
            char = LETTERS[zlib.crc32(text.encode()) % len(LETTERS)]
            text += char
            yield char

    async def script(self, before, parts):
        (part,) = parts
        self.asked.append(before.text)
        text, finish = "", Finish("length")
        for char in self._written(before.text):
            if len(text) == part.sampling.max_tokens:
                break
            text += char
            if (stop := next((stop for stop in part.sampling.stop if text.endswith(stop)), None)) is not None:
                text, finish = text.removesuffix(stop), Finish("stop", matched=stop)
                break
        else:
            finish = Finish("stop")
        for char in text:
            yield Delta(index=0, text=char)
        usage = Usage(prompt_tokens=len(before.text), completion_tokens=len(text))
        yield Delta(index=0, finish=finish, usage=usage)


class Remote(RemoteBackend):
    async def flush_cache(self) -> None: ...
    async def server_info(self):
        return {}


def program(parts: list[tuple[str, tuple[str, ...], str | None]], spec: int | None) -> sgl.SglFunction:
    """A literal and a part for each: its stops and its regex."""

    @sgl.function(num_api_spec_tokens=spec)
    def written(s):
        s += "begin "
        for number, (literal, stop, regex) in enumerate(parts):
            s += literal + sgl.gen(f"v{number}", stop=list(stop), max_tokens=1000, regex=regex)

    return written


PARTS = st.lists(
    st.tuples(
        st.sampled_from(["", "\n", ":", ".a", "\nb:", "zz"]),
        st.sampled_from([("\n",), (":", "."), (".", "\n"), ()]),
        st.sampled_from([None, None, None, "a"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(PARTS, st.integers(1, 200))
def test_what_comes_ahead_is_what_would_have_come(parts, spec):
    alone, ahead = Writer(), Writer()
    expected = program(parts, None).run(backend=Remote(alone))
    found = program(parts, spec).run(backend=Remote(ahead))
    assert found.text() == expected.text()
    for number in range(len(parts)):
        assert found[f"v{number}"] == expected[f"v{number}"]
        ends = [state.get_meta_info(f"v{number}")["finish_reason"] for state in (found, expected)]
        assert [(end["type"], end.get("matched")) for end in ends] == [(ends[0]["type"], ends[0].get("matched"))] * 2


def test_parts_that_the_model_writes_itself_cost_one_request():
    model = Writer(["Ada\nBorn: 1815\nWork: none\n"])

    @sgl.function(num_api_spec_tokens=64)
    def character(s):
        s += "Name: " + sgl.gen("name", stop="\n") + "\nBorn: " + sgl.gen("born", stop="\n")
        s += "\nWork: " + sgl.gen("work", stop="\n") + "\n"

    bound = character.bind()  # which must keep what the program was made with
    state = bound.run(backend=Remote(model), temperature=0)
    assert [state[name] for name in ("name", "born", "work")] == ["Ada", "1815", "none"]
    assert len(model.asked) == 1 and state.get_meta_info("work")["prompt_tokens"] == len("Name: ")


@sgl.function(num_api_spec_tokens=64)
def form(s):
    s += sgl.user("A person, as Name: ... Job: ...")
    s += sgl.assistant("Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job"))
    s += sgl.user("Thanks")
    s += sgl.assistant(sgl.gen("last"))


def test_a_server_that_cannot_go_on_with_a_message_is_asked_for_a_whole_one():
    model = Writer(["Sure! Name: x", "Name: Ada\nJob: countess", "Bye"])
    state = form.run(backend=Remote(model, continues=False))
    assert (state["name"], state["job"], state["last"]) == (" Ada", " countess", "Bye")
    assert model.asked[0] == model.asked[1] == "A person, as Name: ... Job: ..."
    assert state.messages()[1]["content"] == "Name: Ada\nJob: countess"


def test_a_message_that_never_has_the_form_of_the_program_is_an_error_with_its_place():
    with pytest.raises(sgl.Unsupported, match="3 answers") as caught:
        form.run(backend=Remote(Writer(["no"] * 3), continues=False))
    assert caught.value.program == "form" and caught.value.line > 0


def test_streams_spell_what_came_ahead_and_no_request_reaches_into_the_next_message():
    model = Writer([" Ada\nJob: cook\n", " countess", "Bye"])

    async def run():
        state = form.run(backend=Remote(model), stream=True)
        pieces = [piece async for piece in state.text_async_iter()]
        return "".join(pieces), await asyncio.to_thread(state.text)

    told, whole = asyncio.run(asyncio.wait_for(run(), 10))
    assert told == whole == "A person, as Name: ... Job: ...Name: Ada\nJob: countessThanksBye"
    assert len(model.asked) == 3  # a part without a stop string is a request of its own


def test_a_number_that_is_none_is_refused_where_the_program_is_made():
    with pytest.raises(sgl.ProgramError, match="num_api_spec_tokens is 0"):
        sgl.function(num_api_spec_tokens=0)(lambda s: None)
