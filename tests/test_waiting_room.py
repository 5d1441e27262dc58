"""The waiting room: what is deployed, emulated; `test_acceptance` has it at the real seconds."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from moto.awslambda.exceptions import LambdaClientError

from tests import template
from tests.doors import request_start, rest_event
from tests.test_contract import assert_staircase
from tests.waiting_room import Endpoint, Function, emulation, environment

WORK_SECONDS = 0.3


@pytest.fixture(scope="module", autouse=True)
def _emulation() -> Iterator[None]:
    with emulation():
        yield


@pytest.fixture(scope="module")
def endpoint(_emulation: None) -> Iterator[Endpoint]:
    with environment(WORK_SECONDS) as handler:
        yield Endpoint(handler)


def test_request(endpoint: Endpoint) -> None:
    """The gateway starts the machine with an event that carries when the call arrived."""
    request = endpoint.request(epoch=1_795_500_000.25)
    assert request.keys() == {"stateMachineArn", "input"}
    event = json.loads(request["input"])
    assert event["headers"] == {"X-Request-Start": "t=1795500000250"}
    assert (event["httpMethod"], event["path"]) == ("GET", "/test")


def test_nothing_of_the_caller_is_copied(endpoint: Endpoint) -> None:
    """The request's template reads the gateway's clock, and nothing that a caller can write."""
    source = endpoint.integration["requestTemplates"]["application/json"]
    assert source.count("$") == source.count("$context.requestTimeEpoch") == 1
    assert endpoint.integration["passthroughBehavior"] == "never"


def test_a_burst(endpoint: Endpoint) -> None:
    """Eight at once are all served, never two at a time, each a turn or more after the last."""
    answers = endpoint.burst(8)
    assert_staircase(answers, WORK_SECONDS)
    assert not endpoint.function.overlapped()
    assert endpoint.function.refusals
    for answer in answers:
        assert answer.headers["server-timing"].startswith("queue;dur=")


def test_without_the_waiting_room() -> None:
    """A plain proxy answers one of eight: the function refuses the other seven."""
    with environment(1) as handler, ThreadPoolExecutor(8) as callers:
        function = Function(handler)
        calls = [callers.submit(function.invoke, rest_event(request_start())) for _ in range(8)]
        errors = [call.exception() for call in calls]
    assert sum(isinstance(error, LambdaClientError) for error in errors) == 7
    assert errors.count(None) == 1


def test_the_function_fails() -> None:
    """A function that fails answers 500 and reveals nothing; the next call is served."""

    def fail_first(event: dict[str, Any]) -> Any:
        if not endpoint.function.spans:
            raise MemoryError("the secret reason")
        return handler(event)

    with environment(WORK_SECONDS) as handler:
        endpoint = Endpoint(fail_first)
        [failed], [served] = endpoint.burst(1), endpoint.burst(1)
    assert failed.status_code == 500
    assert failed.json() == {"detail": "Internal Server Error"}
    assert served.status_code == 200


def answer(status: int, body: str, **headers: str) -> dict[str, str]:
    """Make the outcome of an execution whose function answered."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    result = {"statusCode": status, "headers": names, "multiValueHeaders": {}, "body": body}
    return {"status": "SUCCEEDED", "output": json.dumps(result)}


NO_TURN = {"detail": "No turn came free in time; try again later."}
ERROR = {"detail": "Internal Server Error"}
ENDINGS: dict[str, tuple[int, dict[str, str], int, dict[str, str], dict[str, Any]]] = {
    "served": (
        200,
        answer(200, '{"elapsed":3.25}', server_timing="queue;dur=0.1, work;dur=3000.0"),
        200,
        {"Server-Timing": "queue;dur=0.1, work;dur=3000.0"},
        {"elapsed": 3.25},
    ),
    "the function's own 503": (
        200,
        answer(503, '{"detail":"stopping"}', retry_after="7"),
        503,
        {"Retry-After": "7"},
        {"detail": "stopping"},
    ),
    "the function's own 500": (200, answer(500, json.dumps(ERROR)), 500, {}, ERROR),
    "throttled to the end": (
        200,
        {"status": "FAILED", "error": "Lambda.TooManyRequestsException", "cause": "Rate Exceeded"},
        503,
        {"Retry-After": "4"},
        NO_TURN,
    ),
    "timed out": (200, {"status": "TIMED_OUT"}, 503, {"Retry-After": "4"}, NO_TURN),
    "failed": (
        200,
        {"status": "FAILED", "error": "ZeroDivisionError", "cause": "secret"},
        500,
        {},
        ERROR,
    ),
    "killed": (
        200,
        {"status": "FAILED", "error": "Sandbox.Timedout", "cause": "x"},
        500,
        {},
        ERROR,
    ),
    "out of memory": (200, {"status": "FAILED", "error": "Runtime.ExitError"}, 500, {}, ERROR),
    "start refused": (
        400,
        {"__type": "ThrottlingException", "message": "Rate exceeded"},
        503,
        {"Retry-After": "4"},
        {"detail": "The waiting room is closed; try again later."},
    ),
    "Step Functions down": (
        500,
        {},
        503,
        {"Retry-After": "4"},
        {"detail": "The waiting room is closed; try again later."},
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings(endpoint: Endpoint, ending: str) -> None:
    """However an execution ends, the caller gets a status, headers and JSON that say so."""
    backend_status, outcome, status, headers, body = ENDINGS[ending]
    response = endpoint.response(backend_status, outcome)
    assert response.status_code == status
    assert response.json() == body
    assert "secret" not in response.text
    assert dict(response.headers) == {
        "content-type": "application/json",
        "content-length": str(len(response.content)),
        **{name.lower(): value for name, value in headers.items()},
    }


def test_one_override_of_the_status(endpoint: Endpoint) -> None:
    """The status is overridden in one place: a second time would be a 5xx of the gateway's."""
    source = endpoint.integration["responses"]["200"]["responseTemplates"]["application/json"]
    assert source.count("$context.responseOverride.status") == 1


@pytest.mark.parametrize(
    ("name", "status", "retry_after"),
    [
        ("THROTTLED", 429, "'4'"),
        ("INTEGRATION_TIMEOUT", 503, "'4'"),
        ("MISSING_AUTHENTICATION_TOKEN", 404, None),
        ("UNSUPPORTED_MEDIA_TYPE", 415, None),
        ("DEFAULT_5XX", 500, None),
    ],
)
def test_gateway_responses(
    endpoint: Endpoint, name: str, status: int, retry_after: str | None
) -> None:
    """What the gateway answers by itself has its status and a JSON body, too."""
    response = endpoint.api["x-amazon-apigateway-gateway-responses"][name]
    assert str(response["statusCode"]) == str(status)
    assert json.loads(response["responseTemplates"]["application/json"])["detail"]
    assert all(
        "statusCode" in other
        for other in endpoint.api["x-amazon-apigateway-gateway-responses"].values()
    )
    parameters = response.get("responseParameters", {})
    assert parameters.get("gatewayresponse.header.Retry-After") == retry_after


def test_url() -> None:
    """The stack tells the URL to call."""
    url = template.source()["Outputs"]["TestUrl"]["Value"]["Fn::Sub"]
    assert url == "https://${Api}.execute-api.${AWS::Region}.${AWS::URLSuffix}/live/test"
