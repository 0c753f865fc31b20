"""Figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from export.serving.pool import Pool

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # seconds


class Metrics:
    """Counted since the server started; names begin with `workbench_`."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "workbench_requests", "Transcription requests answered, by HTTP status", ["status"], registry=self.registry
        )
        self.errors = Counter("workbench_errors", "Errors, by their code", ["code"], registry=self.registry)
        self.audio_seconds = Counter("workbench_audio_seconds", "Seconds of audio transcribed", registry=self.registry)
        self.latency = Histogram(
            "workbench_request_seconds", "Seconds from a transcription request to the end of its answer, refusals apart",
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        waiting = Gauge("workbench_queue_length", "Requests that wait for a worker", registry=self.registry)
        waiting.set_function(lambda: pool.queued)
        running = Gauge("workbench_workers_busy", "Workers that transcribe", registry=self.registry)
        running.set_function(lambda: pool.running)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
