"""Prometheus metrics of every model in memory, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from realm.engine.stats import EngineStats
from realm.lora.resident import PoolStats
from realm.runtime.manager import RuntimeManager
from realm.runtime.stats import Histogram, LoopStats

_LABELS = ["model"]

COUNTERS: tuple[tuple[str, str, Callable[[LoopStats, EngineStats], float]], ...] = (
    ("realm_prompt_tokens", "Prompt tokens of ended requests.", lambda s, e: s.prompt_tokens),
    ("realm_cached_tokens", "Those of them whose KV was found in the prefix cache.", lambda s, e: s.cached_tokens),
    ("realm_completion_tokens", "Generated tokens of ended requests.", lambda s, e: s.completion_tokens),
    ("realm_generated_tokens", "Generated tokens so far, of open requests too.", lambda s, e: e.num_generated_tokens),
    ("realm_steps", "Forward passes.", lambda s, e: e.num_steps),
    ("realm_scheduled_tokens", "Rows over all forward passes.", lambda s, e: e.num_scheduled_tokens),
    ("realm_preemptions", "Requests put back in the queue because KV ran out.", lambda s, e: e.num_preemptions),
)

DRAFTS: tuple[tuple[str, str, Callable[[EngineStats], Mapping[tuple[str, str], int]]], ...] = (
    ("realm_drafted_tokens", "Drafted tokens that were verified.", lambda e: e.drafted_tokens),
    ("realm_accepted_tokens", "Drafted tokens that were right.", lambda e: e.accepted_tokens),
)

GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("realm_requests_running", "Requests in the batch.", lambda e: e.num_running),
    ("realm_requests_waiting", "Requests that wait for a place in the batch.", lambda e: e.num_waiting),
    ("realm_kv_blocks_total", "KV blocks in the pool.", lambda e: e.kv_blocks_total),
    ("realm_kv_blocks_used", "KV blocks that requests hold.", lambda e: e.kv_blocks_used),
    ("realm_kv_blocks_cached", "Free KV blocks that hold a known prefix.", lambda e: e.kv_blocks_cached),
    ("realm_kv_usage_ratio", "Part of the KV blocks that requests hold, 0 to 1.", lambda e: e.kv_usage),
)

ADAPTER_COUNTERS: tuple[tuple[str, str, Callable[[PoolStats], float]], ...] = (
    ("realm_adapter_hits", "Requests that found their adapter ready.", lambda p: p.num_hits),
    ("realm_adapter_misses", "Requests that had to wait for a load of their adapter.", lambda p: p.num_misses),
    ("realm_adapter_loads", "Adapters read and packed.", lambda p: p.num_loads),
    ("realm_adapter_load_seconds", "Time that took, beside the engine's steps.", lambda p: p.load_seconds),
    ("realm_adapter_evictions", "Adapters that gave way to others.", lambda p: p.num_evictions),
)

ADAPTER_GAUGES: tuple[tuple[str, str, Callable[[PoolStats], float]], ...] = (
    ("realm_adapters_resident", "Adapters ready, or being loaded.", lambda p: p.num_resident),
    ("realm_adapters_pinned", "Adapters that stay ready.", lambda p: p.num_pinned),
    ("realm_adapter_resident_bytes", "Memory of ready adapters.", lambda p: p.resident_bytes),
    ("realm_adapter_capacity_bytes", "Memory that ready adapters may take.", lambda p: p.capacity_bytes),
)

HISTOGRAMS: tuple[tuple[str, str, Callable[[LoopStats], Histogram]], ...] = (
    ("realm_step_seconds", "Time of one engine step.", lambda s: s.step_seconds),
    ("realm_batch_size", "Requests that a step moved on.", lambda s: s.batch_size),
    ("realm_time_to_first_token_seconds", "From arrival to the first token.", lambda s: s.first_token_seconds),
    ("realm_inter_token_seconds", "Between two tokens of one request.", lambda s: s.between_tokens_seconds),
    ("realm_tokens_per_step", "Tokens that a step gave one request.", lambda s: s.tokens_per_step),
    ("realm_request_seconds", "From arrival to the end.", lambda s: s.request_seconds),
)


class RuntimeCollector(Collector):
    """Turns each model's own counts into metrics; nothing is counted twice, and counting costs no lock."""

    def __init__(self, runtime: RuntimeManager) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """All metrics, labelled by model."""
        rows = [(m.model_id, m.loop.stats, m.loop.engine_stats()) for m in self._runtime.models]
        requests = CounterMetricFamily("realm_requests", "Ended requests by outcome.", labels=[*_LABELS, "outcome"])
        for model_id, stats, _ in rows:
            for outcome, count in sorted(stats.requests.items()):
                requests.add_metric([model_id, outcome], count)
        yield requests
        yield from _counters(rows)
        yield from _drafts(rows)
        yield self._draft_models()
        yield from _gauges(rows)
        yield from _adapters({m.model_id: m.adapter_pool.stats() for m in self._runtime.models})
        yield from _histograms(rows)

    def _draft_models(self) -> Metric:
        text = "1 for the draft model that a model speculates with."
        info = GaugeMetricFamily("realm_draft_model_info", text, labels=[*_LABELS, "draft_model"])
        for model in self._runtime.models:
            if model.draft_model_id is not None:
                info.add_metric([model.model_id, model.draft_model_id], 1)
        return info


Rows = list[tuple[str, LoopStats, EngineStats]]


def _counters(rows: Rows) -> Iterator[Metric]:
    for name, text, read in COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_LABELS)
        for model_id, stats, engine in rows:
            counter.add_metric([model_id], read(stats, engine))
        yield counter


def _drafts(rows: Rows) -> Iterator[Metric]:
    for name, text, read in DRAFTS:
        counter = CounterMetricFamily(name, text, labels=[*_LABELS, "source", "tenant"])
        for model_id, _, engine in rows:
            for (source, tenant), count in sorted(read(engine).items()):
                counter.add_metric([model_id, source, tenant], count)
        yield counter


def _gauges(rows: Rows) -> Iterator[Metric]:
    for name, text, read in GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_LABELS)
        for model_id, _, engine in rows:
            gauge.add_metric([model_id], read(engine))
        yield gauge


def _adapters(pools: Mapping[str, PoolStats]) -> Iterator[Metric]:
    for family, metrics in ((CounterMetricFamily, ADAPTER_COUNTERS), (GaugeMetricFamily, ADAPTER_GAUGES)):
        for name, text, read in metrics:
            metric = family(name, text, labels=_LABELS)
            for model_id, stats in pools.items():
                metric.add_metric([model_id], read(stats))
            yield metric


def _histograms(rows: Rows) -> Iterator[Metric]:
    for name, text, read in HISTOGRAMS:
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        for model_id, stats, _ in rows:
            histogram = read(stats)
            family.add_metric([model_id], histogram.cumulative(), histogram.total)
        yield family


class Metrics:
    """The /metrics page."""

    def __init__(self, runtime: RuntimeManager) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RuntimeCollector(runtime))

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
