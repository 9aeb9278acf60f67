"""What Prometheus reads at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds
_SLOW = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_FEW = (0, 1, 2, 3, 4, 8, 16)


class Metrics:
    """The counters of one proxy.

    Attributes:
        requests: Requests by route and status.
        request_seconds: Their duration by route, until the last byte of the response.
        in_progress: Chat and choice requests in progress.
        encode_seconds: The duration of encoding a batch of queries.
        choose_seconds: That of choosing for it.
        batch_size: Queries in a batch.
        chosen: Choices by selector.
        shown: Demonstrations in front of a question.
        skipped: Chat requests that went through unchanged, by reason.
        upstream_seconds: Time until the upstream's reply begins.
        upstream_errors: Failures of the upstream, by kind.
        feedback: Scores that were journalled.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("icdsel_requests", "Requests.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "icdsel_request_seconds", "Duration of requests.", ["route"], registry=registry, buckets=_SLOW
        )
        self.in_progress = Gauge("icdsel_in_progress", "Chat and choice requests in progress.", registry=registry)
        self.encode_seconds = Histogram(
            "icdsel_encode_seconds", "Encoding of a batch of queries.", registry=registry, buckets=_SLOW
        )
        self.choose_seconds = Histogram(
            "icdsel_choose_seconds", "Choosing for a batch of queries.", registry=registry, buckets=_FAST
        )
        self.batch_size = Histogram(
            "icdsel_batch_size", "Queries in a batch.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.chosen = Counter("icdsel_chosen", "Choices.", ["selector"], registry=registry)
        self.shown = Histogram(
            "icdsel_shown_icds", "Demonstrations in front of a question.", registry=registry, buckets=_FEW
        )
        self.skipped = Counter("icdsel_skipped", "Requests that went through unchanged.", ["reason"], registry=registry)
        self.upstream_seconds = Histogram(
            "icdsel_upstream_seconds", "Time until the upstream's reply begins.", registry=registry, buckets=_SLOW
        )
        self.upstream_errors = Counter(
            "icdsel_upstream_errors", "Failures of the upstream.", ["kind"], registry=registry
        )
        self.feedback = Counter("icdsel_feedback", "Scores that were journalled.", registry=registry)

    def text(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
