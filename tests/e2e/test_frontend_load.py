"""The loads of `radixlm bench frontend`, small: nothing is lost, doubled or reordered, and everything is given back."""

from __future__ import annotations

import pytest

from radixlm.bench.frontend.measure import Size, measure

pytestmark = pytest.mark.weights  # for the tokenizer

SMALL = Size(streams=100, seconds=2.0, storm=50, rounds=2)
LOADS = ("streams", "storm", "overload")


def test_streams_storms_and_overload_lose_nothing():
    found = {(measure.case, measure.metric): measure.value for measure in measure(SMALL, LOADS, lambda line: None)}

    def value(metric: str) -> float:
        (only,) = [value for (_, name), value in found.items() if name == metric]
        return only

    assert value("tokens received") == 100 * 20
    for metric in ("streams with a wrong text", "requests left open"):
        assert value(metric) == 0, metric
    for metric in ("refusals without Retry-After", "requests failed otherwise"):
        assert value(metric) == 0, metric
