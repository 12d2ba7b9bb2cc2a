"""schemathesis sends the API what its OpenAPI description allows, and what it does not; under 20 s on idle cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dpseg.serving.app import create_app
from dpseg.serving.settings import ServeSettings
from support.api_client import PHOTO, tiny_segmenter

EXAMPLES = 40
"""Requests of a route and mode, at most."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
ROUTES = [
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/v1/segment", "POST"),
    ("/v1/prompts", "POST"),
    ("/v1/prompts/{prompts_id}", "GET"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    segmenter = tiny_segmenter(tmp_path_factory.mktemp("cache"))
    kept = tmp_path_factory.mktemp("kept")
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(ServeSettings(prompts_dir=kept), segmenter))
    shutdown_lifespans()


def send_many(api: Any, path: str, method: str, mode: GenerationMode, photo: bytes | None) -> Counter[int]:
    """Sends requests, checks each answer, and returns how often there was which status."""
    statuses: Counter[int] = Counter()

    @given(case=api[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        if photo is not None and isinstance(case.body, dict):
            case.body["image"] = photo
            if isinstance(case.body.get("prompts"), dict):
                case.body.pop("files", None)
                case.body["prompts"] = {"classes": ["cat"]} | case.body["prompts"] | {"references": []}
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        statuses[response.status_code] += 1

    send()
    return statuses


def test_every_route_is_fuzzed(api: Any) -> None:
    described = {(path, method.upper()) for path, methods in api.raw_schema["paths"].items() for method in methods}
    assert described == set(ROUTES)


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_requests_as_described_never_make_it_fail(api: Any, path: str, method: str) -> None:
    statuses = send_many(api, path, method, GenerationMode.POSITIVE, None)
    assert max(statuses) < 500


@pytest.mark.parametrize(("path", "method"), ROUTES[3:])
def test_requests_unlike_the_description_never_make_it_fail(api: Any, path: str, method: str) -> None:
    statuses = send_many(api, path, method, GenerationMode.NEGATIVE, None)
    assert max(statuses) < 500


def test_fuzzed_prompts_for_a_real_photo(api: Any) -> None:
    statuses = send_many(api, "/v1/segment", "POST", GenerationMode.POSITIVE, PHOTO)
    assert statuses[200] > 0
