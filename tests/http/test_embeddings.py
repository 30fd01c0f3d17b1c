"""POST /v1/embeddings: every form of input, both encodings, and what is refused."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest

from tests.fake_engine import fake_vector
from tests.http.harness import TOKENIZER, Server, with_server

PATH = "/v1/embeddings"


def post(body: dict, status: int = 200) -> dict:
    async def test(server: Server):
        answer = await server.post(PATH, body)
        assert answer.status_code == status, answer.text
        return answer.json()

    return with_server(test)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=True)


def unit(text: str, pooling: str = "mean", size: int = 8) -> np.ndarray:
    vector = np.frombuffer(fake_vector(np.array(ids(text)), pooling), "<f4")[:size]
    return vector / np.linalg.norm(vector)


def test_texts_ids_and_lists_of_both_have_vectors_of_length_one():
    for given, texts in (("ab", ["ab"]), (ids("ab"), ["ab"]), (["ab", "cde"], ["ab", "cde"]), ([ids("ab")], ["ab"])):
        answer = post({"input": given, "model": "fake"})
        assert (answer["object"], answer["model"]) == ("list", "fake")
        assert [item["index"] for item in answer["data"]] == list(range(len(texts)))
        for item, text in zip(answer["data"], texts, strict=True):
            assert item["embedding"] == pytest.approx(unit(text))
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(len, map(ids, texts)))


def test_base64_holds_the_same_floats():
    body = {"input": "some text", "encoding_format": "base64"}
    packed = np.frombuffer(base64.b64decode(post(body)["data"][0]["embedding"]), "<f4")
    assert packed.tolist() == post({**body, "encoding_format": "float"})["data"][0]["embedding"]


def test_pooling_and_dimensions_are_as_asked():
    (item,) = post({"input": "abc", "pooling": "last"})["data"]
    assert item["embedding"] == pytest.approx(unit("abc", "last"))
    (item,) = post({"input": "abc", "dimensions": 3})["data"]
    assert item["embedding"] == pytest.approx(unit("abc", size=3))


def test_more_inputs_than_the_engine_takes_at_a_time_are_embedded_in_turn():
    data = post({"input": ["a", "bc"] * 300})["data"]
    assert len(data) == 600
    assert data[598]["embedding"] == pytest.approx(unit("a"))
    assert data[599]["embedding"] == pytest.approx(unit("bc"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a" * 5000}, "input"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "max"}, "pooling"),
    ],
)
def test_wrong_bodies_are_refused_by_name(body, param):
    assert post(body, 400)["error"]["param"] == param


def test_another_model_is_not_found():
    assert post({"input": "a", "model": "other"}, 404)["error"]["code"] == "model_not_found"


def test_an_abort_is_an_error_and_gives_everything_back():
    async def test(server: Server):
        server.engine.stalled = True
        waiting = asyncio.ensure_future(server.post(PATH, {"input": ["a", "b"], "rid": "x"}))
        while server.engine.num_open < 2:
            await asyncio.sleep(0.001)
        server.engine.stalled = False
        assert await server.frontend.abort("x") == 2
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, "aborted")

    with_server(test, delay_s=0.01)
