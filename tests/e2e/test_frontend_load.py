"""The loads of `python -m bench frontend`, small: nothing is lost, doubled or reordered, and everything is given back."""

from __future__ import annotations

import pytest

from bench.frontend.measure import Frontend
from radixlm.bench.results import Sheet

pytestmark = pytest.mark.weights  # for the tokenizer

SMALL = Frontend(loads=("streams", "storm", "overload"), streams=100, seconds=2.0, storm=50, rounds=2)


def test_streams_storms_and_overload_lose_nothing():
    sheet = Sheet()
    SMALL.measure(sheet)
    found = {(measure.case, measure.metric): measure.value for measure in sheet.measures}

    def value(metric: str) -> float:
        (only,) = [value for (_, name), value in found.items() if name == metric]
        return only

    assert value("tokens received") == 100 * 20
    for metric in ("streams with a wrong text", "requests left open"):
        assert value(metric) == 0, metric
    for metric in ("refusals without Retry-After", "requests failed otherwise"):
        assert value(metric) == 0, metric
