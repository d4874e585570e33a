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
    """Counts requests and tokens; asks the engines for their state when read.

    Outcomes of a request: completed, refused (a 4xx), busy (a 503), gone (the
    client), slow (to read), time_limit, drained, failed. The served models by their
    ids, `models`, may be added later.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, models: Mapping):
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            'gptjax_requests', 'Requests by how they ended.', ('endpoint', 'outcome'),
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            'gptjax_request_seconds', 'From a request to the end of its answer.',
            ('endpoint',), buckets=REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            'gptjax_time_to_first_token_seconds', "Until a reply's first text.",
            ('model',), buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._between_tokens = Histogram(
            'gptjax_inter_token_seconds', 'Between texts of one reply.',
            ('model',), buckets=BETWEEN_TOKENS_BUCKETS, registry=registry,
        )  # fmt: skip
        registry.register(_EngineCollector(models))

    def count_request(self, endpoint: str, outcome: str, seconds: float) -> None:
        self._requests.labels(endpoint, outcome).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_text(self, model: str, seconds: float, is_first: bool) -> None:
        """`seconds` have passed since the text before, or since the request."""
        histogram = self._first_token if is_first else self._between_tokens
        histogram.labels(model).observe(seconds)

    def render(self) -> bytes:
        """The page at /metrics."""
        return generate_latest(self._registry)


class _EngineCollector:
    """Metrics of the engines, read when /metrics is read."""

    GAUGES = (
        ('running', 'Replies that are being drawn.', lambda s: s.running),
        ('waiting', 'Requests without a slot yet.', lambda s: s.waiting),
        ('slots', 'Replies that can be drawn at once.', lambda s: s.slots),
        ('kv_cache_used_ratio', 'Share of the cache in use.', lambda s: s.cache_used),
    )
    COUNTERS = (
        ('prompt_tokens', 'Tokens of prompts.', lambda s: s.prompt_tokens),
        ('cached_tokens', 'Of them, read from the cache.', lambda s: s.cached_tokens),
        ('reply_tokens', 'Tokens drawn.', lambda s: s.reply_tokens),
        ('compilations', 'Programs compiled.', lambda s: s.compilations),
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
            for name, text, read in metrics:
                family = family_class(f'gptjax_{name}', text, labels=('model',))
                for model, state in stats.items():
                    family.add_metric((model,), read(state))
                yield family
