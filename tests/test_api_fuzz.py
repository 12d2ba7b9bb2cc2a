"""schemathesis sends the API what its OpenAPI description allows, and what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dpseg.segmenter import Segmenter
from dpseg.serving.app import create_app
from dpseg.serving.settings import ServeSettings
from support.served import PHOTO

ROUTES = [
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/v1/segment", "POST"),
    ("/v1/prompts", "POST"),
    ("/v1/prompts/{prompts_id}", "GET"),
]
some_requests = pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def api(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import schemathesis
    from schemathesis.python.asgi import shutdown_lifespans

    app = create_app(ServeSettings(prompts_dir=tmp_path_factory.mktemp("kept")), segmenter)
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    shutdown_lifespans()


def send_many(api: Any, path: str, method: str, count: int, mode: str, photo: bytes | None = None) -> Counter[int]:
    """Sends so many requests at most, checks each answer, and returns how often there was which status."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    statuses: Counter[int] = Counter()
    conforms = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]

    @given(case=api[path][method].as_strategy(generation_mode=GenerationMode[mode]))
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def send(case: Any) -> None:
        if photo is not None and isinstance(case.body, dict):
            case.body["image"] = photo
            if isinstance(case.body.get("prompts"), dict):
                case.body.pop("files", None)
                case.body["prompts"] = {"classes": ["cat"]} | case.body["prompts"] | {"references": []}
        response = case.call()
        case.validate_response(response, checks=conforms)
        statuses[response.status_code] += 1

    send()
    return statuses


def test_every_route_is_fuzzed(api: Any) -> None:
    described = {(path, method.upper()) for path, methods in api.raw_schema["paths"].items() for method in methods}
    assert described == set(ROUTES)


@some_requests
@pytest.mark.parametrize("route", ROUTES)
def test_requests_as_described_never_make_it_fail(api: Any, route: tuple[str, str], count: int) -> None:
    assert max(send_many(api, *route, count, "POSITIVE")) < 500


@some_requests
@pytest.mark.parametrize("route", ROUTES[3:])
def test_requests_unlike_the_description_never_make_it_fail(api: Any, route: tuple[str, str], count: int) -> None:
    assert max(send_many(api, *route, count, "NEGATIVE")) < 500


@some_requests
def test_prompts_of_any_kind_for_a_real_photo(api: Any, count: int) -> None:
    statuses = send_many(api, "/v1/segment", "POST", count, "POSITIVE", PHOTO)
    assert statuses[200] > 0
