"""From samples to the numbers of a serving run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from radixlm.bench.load import Done, Sample
from radixlm.bench.results import Sheet, percentile

Add = Callable[..., None]
"""`Sheet.add` of one case and subject."""


def summarise(parts: Sequence[Done], goal: tuple[float, float] | None, case: str, subject: str, sheet: Sheet) -> None:
    """The numbers of one run over all its processes. Rates count from the start to the last token of the last request.

    `goal`: a request is good if its first token and its later ones (on average) come within so many ms.
    """
    add = partial(sheet.add, case, subject=subject)
    good = [sample for part in parts for sample in part.samples]
    began = min(part.began for part in parts)
    wall_s = max((sample.reading.times[-1] for sample in good), default=began) - began or 1.0
    add("requests", "1/s", len(good) / wall_s, higher=True)
    add("output", "tok/s", sum(sample.reading.num_output for sample in good) / wall_s, higher=True)
    add("failures", "requests", sum(len(part.failures) for part in parts))
    _latencies(good, add)
    if goal is not None:
        met = sum(1e3 * sample.first_s <= goal[0] and 1e3 * sample.tpot_s <= goal[1] for sample in good)
        add(f"goodput (TTFT <= {goal[0]:g} ms, TPOT <= {goal[1]:g} ms)", "1/s", met / wall_s, higher=True)
    _reuse(good, add)
    _client(parts, add)


def _latencies(good: Sequence[Sample], add: Add) -> None:
    series = {
        "TTFT": [sample.first_s for sample in good],
        "TPOT": [sample.tpot_s for sample in good if sample.reading.num_output > 1],
        "ITL": [gap for sample in good for gap in sample.gaps_s],
        "E2E": [sample.total_s for sample in good],
    }
    for name, values in series.items():
        for share in (50, 90, 99):
            add(f"{name} p{share}", "ms", 1e3 * percentile(values, share / 100))


def _reuse(good: Sequence[Sample], add: Add) -> None:
    """What the server says it found in its cache, and how often the history had to be made up."""
    telling = [sample.reading for sample in good if sample.reading.num_cached >= 0]
    if telling:
        share = sum(reading.num_cached for reading in telling) / max(1, sum(reading.num_prompt for reading in telling))
        add("prompt tokens from cache", "%", 100 * share, higher=True)
    if made_up := sum(sample.reading.output_ids is None for sample in good):
        add("turns whose output ids were made up", "requests", made_up)


def _client(parts: Sequence[Done], add: Add) -> None:
    """The cost of measuring: above some 80 % of a core per process the client is what is measured."""
    num_events = sum(len(sample.reading.times) for part in parts for sample in part.samples) or 1
    busiest = max((part.cpu_s / part.wall_s for part in parts if part.wall_s), default=0.0)
    add("client cost per event", "us", 1e6 * sum(part.cpu_s for part in parts) / num_events)
    add("busiest client process", "% of a core", 100 * busiest)
