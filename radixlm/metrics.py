"""Every metric once: its name, kind and help. One registry per application, nothing global.

Where several frontends serve together, each counts in files of a folder that they share, and any of them exposes the sums.

A frontend observes its own requests; what the engine counts arrives as its `stats` and is exposed under the names below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

ENGINE_METRICS: dict[str, tuple[Literal["counter", "gauge"], str]] = {
    "accepted": ("counter", "Requests that entered the engine."),
    "finished": ("counter", "Requests that ended by stop or length."),
    "aborted": ("counter", "Requests that ended by abort."),
    "rejected": ("counter", "Requests refused at the engine's door."),
    "failed": ("counter", "Requests that ended by error or timeout."),
    "preempted": ("counter", "Times a running request had to give its pages back and wait again."),
    "prompt_tokens": ("counter", "Prompt tokens of admitted requests."),
    "cached_tokens": ("counter", "Prompt tokens that came from the prefix cache."),
    "output_tokens": ("counter", "Output tokens, forced ones included."),
    "forced_tokens": ("counter", "Tokens appended without sampling, by grammars and by scripts."),
    "proposed_tokens": ("counter", "Tokens of constrained texts tried before they were sampled."),
    "accepted_tokens": ("counter", "Proposed tokens that came indeed."),
    "steps": ("counter", "Steps computed."),
    "repaired": ("counter", "Broken invariants found and repaired while idle."),
    "running": ("gauge", "Requests being computed."),
    "waiting": ("gauge", "Requests in the queue."),
    "open": ("gauge", "Requests accepted and not ended."),
    "total_pages": ("gauge", "KV pages in all."),
    "free_pages": ("gauge", "KV pages that nobody owns."),
    "idle_pages": ("gauge", "Cached KV pages that may be evicted."),
    "used_pages": ("gauge", "KV pages that running requests need."),
    "evicted_pages": ("counter", "Cached KV pages evicted."),
    "tree_nodes": ("gauge", "Nodes of the prefix tree."),
    "kv_usage": ("gauge", "Share of KV pages in use, 0 to 1."),
    "cache_hit_rate": ("gauge", "Share of prompt tokens that came from the prefix cache, 0 to 1."),
    "output_tokens_per_s": ("gauge", "Output tokens per second, over the last seconds."),
    "page_size": ("gauge", "Tokens per KV page."),
}
"""Keys of the engine's `stats` that are exposed, as radixlm_engine_KEY."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class _EngineStats(Collector):
    """Shows the engine's last statistics."""

    def __init__(self) -> None:
        self.values: Mapping[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        for key, (kind, text) in ENGINE_METRICS.items():
            value = self.values.get(key)
            if not isinstance(value, int | float):
                continue
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(f"radixlm_engine_{key}", text, value=value)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engine = _EngineStats()
        self.registry.register(self._engine)
        self.http_requests = Counter(
            "radixlm_http_requests", "HTTP requests answered.", ("route", "status"), registry=self.registry
        )
        self.requests = Counter(
            "radixlm_requests", "Choices generated, by how they ended.", ("outcome",), registry=self.registry
        )
        self.open_requests = Gauge(
            "radixlm_open_requests", "Choices being generated.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.queue_seconds = self._histogram("queue_seconds", "Time until admission.")
        self.first_token_seconds = self._histogram("time_to_first_token_seconds", "Time until the first token arrived.")
        self.request_seconds = self._histogram("request_seconds", "Time until the last token arrived.")
        text = "Mean time per token after the first, per choice."
        self.token_seconds = self._histogram("time_per_output_token_seconds", text, _TOKEN_SECONDS)

    def exposition(self, engine_stats: Mapping[str, Any]) -> bytes:
        """All metrics in the Prometheus text format."""
        self._engine.values = engine_stats
        return generate_latest(self._everybodys())

    def first_token_counts(self) -> tuple[list[float], list[int]]:
        """Upper bounds in seconds, and how many first tokens came within each and not the one before; the last is the rest."""
        name = "radixlm_time_to_first_token_seconds"
        families = [family for family in self._everybodys().collect() if family.name == name]
        samples = [one for family in families for one in family.samples if one.name.endswith("_bucket")]
        totals = [int(one.value) for one in samples]
        counts = [total - before for before, total in zip([0, *totals], totals)]
        return [float(one.labels["le"]) for one in samples[:-1]], counts

    def _everybodys(self) -> CollectorRegistry:
        """What all frontends counted, and the engine."""
        if _FOLDER not in os.environ:
            return self.registry
        merged = CollectorRegistry()
        MultiProcessCollector(merged)
        merged.register(self._engine)
        return merged

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"radixlm_{name}", text, buckets=buckets, registry=self.registry)
