"""Streams of one frontend: who is handed what a step produced, and in which order readers run."""

from __future__ import annotations

import asyncio

import numpy as np

from radixlm.engine.streams import Streams
from radixlm.messages import Ended, Outputs
from radixlm.types import Finish, Part, Request, SamplingParams, from_bytes, to_bytes


def test_a_reader_whose_stream_ends_runs_before_the_others_and_has_its_last_token():
    async def main() -> list[tuple[int, list[int], bool]]:
        streams, seen = Streams(lambda requests: None), []

        async def read(key: int) -> None:
            request = Request(key=key, script=(Part(to_bytes([1]), SamplingParams()),))
            frame = await anext(streams.follow(request, lambda key: None))
            seen.append((key, from_bytes(frame.tokens).tolist(), bool(frame.ended)))

        readers = [asyncio.ensure_future(read(key)) for key in range(4)]
        await asyncio.sleep(0)
        tokens = np.arange(10, 14, dtype=np.int32).tobytes()
        ended = (Ended(2, Finish("length")), Ended(9, Finish("length")))  # the last one's reader has left
        streams.deliver(Outputs(np.arange(4, dtype=np.int64).tobytes(), tokens, (), ended))
        for _ in range(3):
            await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        return seen

    assert asyncio.run(main()) == [(2, [12], True), (0, [10], False), (1, [11], False), (3, [13], False)]
