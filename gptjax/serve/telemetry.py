"""The metrics of the server, for Prometheus."""

from collections.abc import Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Telemetry:
    """Counts requests and tokens; reads the engines' state when a client asks.

    Outcomes of a request: completed, refused (4xx), busy (503), gone (the client
    disconnected), slow (the client did not read), time_limit, drained, failed.
    Entries may be added to `models`, the served models by id, later.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, models: Mapping):
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            'gptjax_requests', 'Requests by how they ended.', ('endpoint', 'outcome'),
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            'gptjax_request_seconds', 'From a request to the end of the response.',
            ('endpoint',), buckets=REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            'gptjax_time_to_first_token_seconds', "Until a reply's first text.",
            ('model',), buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._between_tokens = Histogram(
            'gptjax_inter_token_seconds', 'Between two texts of one reply.',
            ('model',), buckets=BETWEEN_TOKENS_BUCKETS, registry=registry,
        )  # fmt: skip
        registry.register(_EngineCollector(models))

    def count_request(self, endpoint: str, outcome: str, seconds: float) -> None:
        self._requests.labels(endpoint, outcome).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_text(self, model: str, seconds: float, is_first: bool) -> None:
        """Counts a text, `seconds` after the previous text or after the request."""
        histogram = self._first_token if is_first else self._between_tokens
        histogram.labels(model).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector:
    # (name of the metric, field of the engine's statistics, description)
    GAUGES = (
        ('running', 'running', 'Replies that the engine draws now.'),
        ('waiting', 'waiting', 'Requests that wait for a slot.'),
        ('slots', 'slots', 'Replies that the engine can draw at the same time.'),
        ('kv_cache_used_ratio', 'cache_used', 'Share of the KV cache in use.'),
    )
    COUNTERS = (
        ('prompt_tokens', 'prompt_tokens', 'Tokens of prompts.'),
        ('cached_tokens', 'cached_tokens', 'Prompt tokens found in the cache.'),
        ('reply_tokens', 'reply_tokens', 'Tokens of replies.'),
        ('compilations', 'compilations', 'Programs compiled.'),
    )

    def __init__(self, models: Mapping):
        self._models = models

    def describe(self):
        return []

    def collect(self):
        stats = {name: model.engine.stats() for name, model in self._models.items()}
        for family_class, metrics in (
            (GaugeMetricFamily, self.GAUGES),
            (CounterMetricFamily, self.COUNTERS),
        ):
            for name, field, text in metrics:
                family = family_class(f'gptjax_{name}', text, labels=('model',))
                for model, state in stats.items():
                    family.add_metric((model,), getattr(state, field))
                yield family
