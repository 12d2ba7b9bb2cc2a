"""Figures for Prometheus: requests, batches, times, prompts that were in memory, and the process itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PHOTOS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The figures of one server, in a registry of their own.

    Attributes:
        registry: all of them.
    """

    def __init__(self, inside: Callable[[], int]) -> None:
        """Registers them.

        Args:
            inside: returns how many requests are in work.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        labels, registry = ("route", "status"), self.registry
        self._requests = Counter("dpseg_requests", "Requests that were answered.", labels, registry=registry)
        self._seconds = Histogram(
            "dpseg_request_seconds",
            "From the first byte to the answer.",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._model = Histogram(
            "dpseg_model_seconds", "Of a step of the model.", ("step",), registry=registry, buckets=_SECONDS
        )
        self._photos = Histogram("dpseg_batch_photos", "Photos of a batch.", registry=registry, buckets=_PHOTOS)
        self._prompts = Counter("dpseg_prompts", "Prompts that were asked for.", ("memory",), registry=registry)
        Gauge("dpseg_requests_inside", "Requests in work.", registry=registry).set_function(inside)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def worked(self, step: str, count: int, seconds: float) -> None:
        """Counts a step of the model, "prompts" or "segment", with so many at once."""
        self._model.labels(step).observe(seconds)
        if step == "segment":
            self._photos.observe(count)

    def prompted(self, in_memory: bool) -> None:
        """Counts prompts that were asked for, and whether they were in memory."""
        self._prompts.labels("hit" if in_memory else "miss").inc()

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts and times every request; routes that do not exist count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, status, time.perf_counter() - start)
