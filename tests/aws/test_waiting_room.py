"""The waiting room, in emulation; `test_acceptance` has it with the real three seconds."""

import json
import time
from collections.abc import Iterator
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest
from moto.awslambda.exceptions import LambdaClientError
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl

from tests.aws.fake_aws import Endpoint, Function, Handle, emulation, environment
from tests.support.sleep import Sleep

WORK_SECONDS = 0.3


@pytest.fixture(scope="module", autouse=True)
def _emulation() -> Iterator[None]:
    with emulation():
        yield


@pytest.fixture(scope="module")
def endpoint(_emulation: None) -> Iterator[Endpoint]:
    with environment(WORK_SECONDS) as handler:
        yield Endpoint(Function(handler))


def test_request(endpoint: Endpoint) -> None:
    """The gateway starts the state machine with an event that holds the request's arrival."""
    request = endpoint.request(epoch=1_795_500_000.25)
    assert request.keys() == {"stateMachineArn", "input"}
    event = json.loads(request["input"])
    assert event["headers"] == {"X-Request-Start": "t=1795500000250"}
    assert (event["httpMethod"], event["path"]) == ("GET", "/test")


def test_nothing_of_the_client_is_copied(endpoint: Endpoint) -> None:
    """The request's template reads the gateway's clock, and nothing that a client can write."""
    source = endpoint.integration["requestTemplates"]["application/json"]
    assert source.count("$") == source.count("$context.requestTimeEpoch") == 1
    assert endpoint.integration["passthroughBehavior"] == "never"


def test_the_function_fails() -> None:
    """When the function fails, the response is a 500 that reveals nothing; the next is a 200."""

    def fail_first(event: dict[str, Any]) -> Any:
        if not endpoint.function.spans:
            raise MemoryError("the secret reason")
        return handler(event)

    with environment(WORK_SECONDS) as handler:
        endpoint = Endpoint(Function(fail_first))
        [failed], [served] = endpoint.burst(1), endpoint.burst(1)
    assert failed.status_code == 500
    assert failed.json() == {"detail": "Internal Server Error"}
    assert served.status_code == 200
    assert endpoint.logged == ["ExecutionFailed"]


def result(status: int, body: str, **headers: str) -> dict[str, Any]:
    """Make a result of the function."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"statusCode": status, "headers": names, "multiValueHeaders": {}, "body": body}


def after(rejections: int, error: str) -> Handle:
    """Make a function that Lambda rejects as often as `rejections` says, and then runs."""
    left = repeat(LambdaClientError(error, "the secret reason"), rejections)

    def run(event: dict[str, Any]) -> Any:
        if rejection := next(left, None):
            raise rejection
        return result(200, "{}")

    return run


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Skip the pauses between attempts, and record their seconds."""
    seconds: list[float] = []
    monkeypatch.setattr(retrier_decl, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.mark.parametrize(("rejections", "status"), [(2, 200), (3, 500)])
def test_fault_of_lambda_itself(rejections: int, status: int, pauses: list[float]) -> None:
    """A transient error of Lambda's is retried twice, and not a third time."""
    [response] = Endpoint(Function(after(rejections, "ServiceException"))).burst(1)
    assert response.status_code == status
    assert len(pauses) == 2


def test_retry_without_a_pause_after_a_long_wait(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An execution retries 25 times after a pause of up to a second, and then without a pause."""
    endpoint = Endpoint(Function(lambda event: event))
    monkeypatch.setattr(endpoint.function, "invoke", after(40, "TooManyRequestsException"))
    [response] = endpoint.burst(1)
    assert response.status_code == 200
    assert len(set(pauses)) == 25
    assert all(0 <= pause <= 1 for pause in pauses)


def test_not_completed_in_time() -> None:
    """A request that is not completed within the gateway's 29 s gets a 503 from the gateway."""
    endpoint = Endpoint(Function(lambda event: event))
    with endpoint.function.environment:
        response = endpoint.get(arrived=time.time() - 28.5)
    assert (response.status_code, response.headers["retry-after"]) == (503, "4")
    assert response.json() == NOT_COMPLETED


def test_no_work_that_cannot_end_in_time() -> None:
    """A request that reaches a free function too late gets a 503 from it, and no work is done."""
    work = Sleep()
    with environment(WORK_SECONDS, max_wait_seconds=1, work=work) as handler:
        response = Endpoint(Function(handler)).get(arrived=time.time() - 1)
    assert not work.begun
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"detail": "The request waited for more than 1 s; try again in 1 s."}


def outcome(status: int, body: str, **headers: str) -> dict[str, str]:
    """Make the outcome of an execution whose function returned."""
    return {"status": "SUCCEEDED", "output": json.dumps(result(status, body, **headers))}


NOT_COMPLETED = {"detail": "Not completed in time; try again later."}
TOO_MANY_REQUESTS = {"detail": "Too many requests; try again later."}
ERROR = {"detail": "Internal Server Error"}
ENDINGS: dict[str, tuple[int, dict[str, str], int, dict[str, str], dict[str, Any]]] = {
    "served": (
        200,
        outcome(200, '{"elapsed":3.25}', server_timing="queue;dur=0.1, work;dur=3000.0"),
        200,
        {"Server-Timing": "queue;dur=0.1, work;dur=3000.0"},
        {"elapsed": 3.25},
    ),
    "the function's own 503": (
        200,
        outcome(503, '{"detail":"stopping"}', retry_after="7"),
        503,
        {"Retry-After": "7"},
        {"detail": "stopping"},
    ),
    "the function's own 500": (200, outcome(500, json.dumps(ERROR)), 500, {}, ERROR),
    "timed out": (200, {"status": "TIMED_OUT"}, 503, {"Retry-After": "4"}, NOT_COMPLETED),
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
    "start throttled": (
        400,
        {"__type": "com.amazon.coral.availability#ThrottlingException", "message": "Rate exceeded"},
        503,
        {"Retry-After": "4"},
        TOO_MANY_REQUESTS,
    ),
    "start not allowed": (
        400,
        {"__type": "com.amazon.coral.service#AccessDeniedException", "Message": "secret"},
        500,
        {},
        ERROR,
    ),
    "machine gone": (400, {"__type": "StateMachineDoesNotExist"}, 500, {}, ERROR),
    "Step Functions down": (500, {}, 500, {}, ERROR),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings(endpoint: Endpoint, ending: str) -> None:
    """However an execution ends, the client gets a status, headers and JSON to match."""
    backend_status, outcome, status, headers, body = ENDINGS[ending]
    response = endpoint.response(backend_status, outcome)
    assert response.status_code == status
    assert response.json() == body
    assert "secret" not in response.text
    assert dict(response.headers) == {
        "cache-control": "no-store",
        "content-type": "application/json",
        "content-length": str(len(response.content)),
        **{name.lower(): value for name, value in headers.items()},
    }


@pytest.mark.parametrize("backend_status", ["200", "default"])
def test_one_override_of_the_status(endpoint: Endpoint, backend_status: str) -> None:
    """The status is overridden in one place: with a second, the gateway would send a 5xx."""
    response = endpoint.integration["responses"][backend_status]
    source = response["responseTemplates"]["application/json"]
    assert source.count("$context.responseOverride.status") == 1


def test_gateway_responses(endpoint: Endpoint) -> None:
    """The gateway's own responses have a status of their own and a JSON body, too."""
    for name in ("THROTTLED", "INTEGRATION_TIMEOUT"):
        assert endpoint.gateway_response(name).headers["cache-control"] == "no-store"
    responses = {
        name: endpoint.gateway_response(name)
        for name in endpoint.api["x-amazon-apigateway-gateway-responses"]
    }
    assert {
        name: (response.status_code, response.headers.get("retry-after"), response.json())
        for name, response in responses.items()
    } == {
        "THROTTLED": (429, "4", TOO_MANY_REQUESTS),
        "INTEGRATION_TIMEOUT": (503, "4", NOT_COMPLETED),
        "ACCESS_DENIED": (403, None, {"detail": "Forbidden"}),
        "MISSING_AUTHENTICATION_TOKEN": (404, None, {"detail": "Not Found"}),
        "UNSUPPORTED_MEDIA_TYPE": (415, None, {"detail": "Unsupported Media Type"}),
        "DEFAULT_5XX": (500, None, ERROR),
    }
