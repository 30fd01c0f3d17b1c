"""From samples to the numbers of a serving run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radixlm.bench.cases import Metric
from radixlm.bench.load import Done, Sample


@dataclass(frozen=True)
class Goal:
    """A request is good if its first token and its later ones come this fast."""

    ttft_ms: float
    tpot_ms: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank); 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def tpot_s(sample: Sample) -> float:
    """Mean time per output token after the first (0 for a single token)."""
    return (sample.total_s - sample.first_s) / (sample.num_output - 1) if sample.num_output > 1 else 0.0


def summarise(parts: Sequence[Done], goal: Goal | None) -> list[Metric]:
    """Metrics of one run over all its processes. Rates count from the start to the last token of the last request."""
    samples = [sample for part in parts for sample in part.samples]
    good = [sample for sample in samples if not sample.error]
    wall_s = max((sample.start_s + sample.total_s for sample in good), default=0.0) or 1.0
    return [
        Metric("requests", "1/s", len(good) / wall_s, True),
        Metric("output", "tok/s", sum(sample.num_output for sample in good) / wall_s, True),
        Metric("failures", "requests", len(samples) - len(good), False),
        *_latencies(good),
        *_goodput(good, goal, wall_s),
        *_reuse(good),
        *_client(parts),
    ]


def _latencies(good: Sequence[Sample]) -> list[Metric]:
    series = {
        "TTFT": [sample.first_s for sample in good],
        "TPOT": [tpot_s(sample) for sample in good if sample.num_output > 1],
        "ITL": [gap for sample in good for gap in sample.gaps_s],
        "E2E": [sample.total_s for sample in good],
    }
    return [
        Metric(f"{name} p{share}", "ms", 1e3 * percentile(values, share / 100), False)
        for name, values in series.items()
        for share in (50, 90, 99)
    ]


def _goodput(good: Sequence[Sample], goal: Goal | None, wall_s: float) -> list[Metric]:
    if goal is None:
        return []
    met = [s for s in good if 1e3 * s.first_s <= goal.ttft_ms and 1e3 * tpot_s(s) <= goal.tpot_ms]
    name = f"goodput (TTFT <= {goal.ttft_ms:g} ms, TPOT <= {goal.tpot_ms:g} ms)"
    return [Metric(name, "1/s", len(met) / wall_s, True)]


def _reuse(good: Sequence[Sample]) -> list[Metric]:
    """What the server says it found in its cache, and how often the history had to be made up."""
    found: list[Metric] = []
    telling = [sample for sample in good if sample.num_cached >= 0]
    if telling:
        share = sum(s.num_cached for s in telling) / max(1, sum(s.num_prompt for s in telling))
        found.append(Metric("prompt tokens from cache", "%", 100 * share, True))
    substituted = sum(sample.substituted for sample in good)
    if substituted:
        found.append(Metric("turns whose output ids were made up", "requests", substituted, False))
    return found


def _client(parts: Sequence[Done]) -> list[Metric]:
    """The cost of measuring: above some 80 % of a core per process the client is what is measured."""
    num_events = sum(1 + len(sample.gaps_s) for part in parts for sample in part.samples) or 1
    busiest = max((part.cpu_s / part.wall_s for part in parts if part.wall_s), default=0.0)
    return [
        Metric("client cost per event", "us", 1e6 * sum(part.cpu_s for part in parts) / num_events, False),
        Metric("busiest client process", "% of a core", 100 * busiest, False),
    ]
