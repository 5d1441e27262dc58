"""An emulated deployment, through which requests go: gateway, state machine, function.

The gateway's templates are the template's own, rendered by a Velocity engine; the state machine is
the template's own, run by moto's interpreter; the function is an emulation of Lambda at reserved
concurrency 1 around a handler of the test's choice.
"""

import asyncio
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import airspeed
import boto3
import httpx
from botocore.validate import validate_parameters
from mangum import Mangum
from moto import mock_aws
from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda_simple.models import LambdaSimpleBackend
from moto.core.config import DefaultConfig
from moto.stepfunctions.responses import get_backend

from handler.app import create_app
from handler.runner import Work
from handler.settings import Settings
from handler.work import work as default_work
from tests.aws import template

REGION = "eu-central-1"
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_MAX_ATTEMPTS": "1",  # the state machine's retries are the only ones
}
REQUESTS_PER_SECOND = 10
"""Synchronous requests that Lambda takes per second, for each unit of reserved concurrency."""

OVERHEAD = 0.02

FATAL = {"ExecutionAborted", "ExecutionFailed", "ExecutionTimedOut"}
LOGGED = {"FATAL": FATAL, "ERROR": FATAL | {"TaskFailed", "TaskTimedOut"}}
"""The events of this state machine that are logged, by the log's level.

https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html
"""

Handle = Callable[[dict[str, Any]], Any]


class Function:
    """Lambda at reserved concurrency 1: rejects invocations that overlap or come too fast.

    A `handle` that raises is a function that failed.
    Each invocation takes `OVERHEAD` seconds on top of `handle`, a rejected one too.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.environment = threading.Lock()
        self.bucket = threading.Lock()
        self.tokens = float(REQUESTS_PER_SECOND)
        self.filled = time.monotonic()
        self.spans: list[tuple[float, float]] = []
        self.rejections: list[str] = []

    def invoke(self, event: dict[str, Any]) -> Any:
        with self.bucket:
            now = time.monotonic()
            self.tokens = min(
                REQUESTS_PER_SECOND, self.tokens + (now - self.filled) * REQUESTS_PER_SECOND
            )
            self.filled = now
            too_fast = self.tokens < 1
            if not too_fast:
                self.tokens -= 1
        if too_fast:
            self.reject("ReservedFunctionInvocationRateLimitExceeded")
        if not self.environment.acquire(blocking=False):
            self.reject("ReservedFunctionConcurrentInvocationLimitExceeded")
        began = time.monotonic()
        try:
            time.sleep(OVERHEAD)
            return self.handle(event)
        finally:
            self.spans.append((began, time.monotonic()))
            self.environment.release()

    def overlapped(self) -> bool:
        """Return whether two accepted invocations ever overlapped."""
        return any(one[1] > other[0] for one, other in pairwise(sorted(self.spans)))

    def reject(self, reason: str) -> None:
        self.rejections.append(reason)
        time.sleep(OVERHEAD)
        raise LambdaClientError("TooManyRequestsException", f"Rate Exceeded. Reason: {reason}")


class Endpoint:
    """`GET /test` of an emulated deployment of `function`."""

    def __init__(self, function: Function) -> None:
        self.function = function
        name = f"function-{uuid.uuid4()}"
        FUNCTIONS[name] = function
        resources = template.deployed()
        role = boto3.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        role_arn = role["Role"]["Arn"]
        function_arn = boto3.client("lambda").create_function(
            FunctionName=name,
            Runtime="python3.13",
            Handler="handler.main.handler",
            Role=role_arn,
            Code={"ZipFile": b""},
        )["FunctionArn"]
        values: dict[str, Any] = {
            "WorkSeconds": "3",
            "AllowedIps": ["0.0.0.0/0", "::/0"],
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "Function.Arn": function_arn,
            "ApiRole.Arn": role_arn,
        }
        machine = resources["WaitingRoom"]["Properties"]
        self.log_level = machine["LoggingConfiguration"]["Level"]
        self.logged: list[str] = []
        substitutions = template.resolve(machine["DefinitionSubstitutions"], values)
        self.states = boto3.client("stepfunctions")
        values["WaitingRoom"] = self.states.create_state_machine(
            name=name,
            definition=template.resolve(
                {"Fn::Sub": [template.resolve(machine["DefinitionString"], values), substitutions]},
                values,
            ),
            roleArn=role_arn,
        )["stateMachineArn"]
        self.api = template.resolve(resources["Api"]["Properties"]["Body"], values)
        self.method = self.api["paths"]["/test"]["get"]
        self.integration = self.method["x-amazon-apigateway-integration"]

    def request(self, epoch: float) -> dict[str, str]:
        """Render the gateway's StartSyncExecution for a request that arrived at `epoch` seconds."""
        context = {"context": {"requestTimeEpoch": math.floor(epoch * 1000)}}
        rendered = render(self.integration["requestTemplates"]["application/json"], context)
        request: dict[str, str] = json.loads(rendered)
        operation = self.states.meta.service_model.operation_model("StartSyncExecution")
        validate_parameters(request, operation.input_shape)
        return request

    def response(self, status: int, body: dict[str, Any]) -> httpx.Response:
        """Render the gateway's response for a response of StartSyncExecution."""
        responses = self.integration["responses"]
        response = responses.get(str(status), responses["default"])
        override: dict[str, Any] = {"header": {}}
        rendered = render(
            response["responseTemplates"]["application/json"],
            {
                "input": SimpleNamespace(path=partial(json_path, body)),
                "util": SimpleNamespace(parseJson=json.loads),
                "context": {"responseOverride": override},
            },
        )
        final = str(override.get("status", response["statusCode"]))
        headers = override["header"]
        declared = self.method["responses"][final]
        assert headers.keys() <= declared.get("headers", {}).keys()
        return httpx.Response(
            int(final), headers={"Content-Type": "application/json"} | headers, text=rendered
        )

    def gateway_response(self, name: str) -> httpx.Response:
        """Return a response that the gateway sends by itself."""
        response = self.api["x-amazon-apigateway-gateway-responses"][name]
        headers = {
            parameter.removeprefix("gatewayresponse.header."): value.strip("'")
            for parameter, value in response.get("responseParameters", {}).items()
        }
        return httpx.Response(
            int(response["statusCode"]),
            headers={"Content-Type": "application/json"} | headers,
            text=response["responseTemplates"]["application/json"],
        )

    def get(self, arrived: float) -> httpx.Response:
        """Return the response to a request that `arrived` at the gateway, in epoch seconds."""
        request = self.request(arrived)
        arn = self.states.start_execution(name=str(uuid.uuid4()), **request)["executionArn"]
        execution: Any = get_backend(arn.split(":")[4], REGION).describe_execution(arn)
        patience = self.integration["timeoutInMillis"] / 1000
        while execution.status == "RUNNING":
            if time.time() - arrived >= patience:
                return self.gateway_response("INTEGRATION_TIMEOUT")
            time.sleep(0.02)  # moto has no StartSyncExecution to wait in
        events = [event["type"] for event in execution.to_history_output()["events"]]
        self.logged += [event for event in events if event in LOGGED[self.log_level]]
        outcome = execution.to_describe_output()
        known = ("status", "output", "error", "cause")
        return self.response(200, {key: outcome[key] for key in known if key in outcome})

    def burst(self, n: int) -> list[httpx.Response]:
        """Send `n` simultaneous requests; return the responses in order of return."""
        responses: list[httpx.Response] = []
        with ThreadPoolExecutor(n) as clients:
            arrived = time.time()
            for future in [clients.submit(self.get, arrived) for _ in range(n)]:
                future.add_done_callback(lambda future: responses.append(future.result()))
        return responses


@contextmanager
def environment(
    work_seconds: float, max_wait_seconds: float | None = None, work: Work = default_work
) -> Iterator[Handle]:
    """Start an execution environment of the real Lambda handler, in a thread of its own."""

    def start() -> Mangum:
        asyncio.set_event_loop(asyncio.new_event_loop())
        settings = Settings(
            work_seconds=work_seconds, max_wait_seconds=max_wait_seconds, trust_request_start=True
        )
        return Mangum(create_app(settings, work), lifespan="off")

    def stop() -> None:
        asyncio.get_event_loop().close()

    with ThreadPoolExecutor(1) as thread:
        handler = thread.submit(start).result()
        try:
            yield lambda event: thread.submit(handler, event, SimpleNamespace()).result()
        finally:
            thread.submit(stop).result()


def json_path(body: dict[str, Any], path: str) -> Any:
    """Return what API Gateway's `$input.path` returns for the body, or for one entry of it."""
    return body if path == "$" else body.get(path.removeprefix("$."))


def render(source: str, names: dict[str, Any]) -> str:
    rendered: str = airspeed.Template(source).merge(names)
    return rendered


FUNCTIONS: dict[str, Function] = {}


def _invoke(
    backend: object,
    function_name: str,
    qualifier: str | None,
    body: str,
    headers: object,
    response_headers: dict[str, str],
) -> bytes:
    function = FUNCTIONS[function_name.rpartition(":")[2]]
    try:
        return json.dumps(function.invoke(json.loads(body))).encode()
    except LambdaClientError:
        raise
    except Exception as error:
        response_headers["x-amz-function-error"] = "Unhandled"
        return json.dumps({"errorType": type(error).__name__, "errorMessage": str(error)}).encode()


@contextmanager
def emulation() -> Iterator[None]:
    """Emulate AWS for the endpoints that are made in the body."""
    simple: DefaultConfig = {
        "stepfunctions": {"execute_state_machine": True},
        "lambda": {"use_docker": False},
    }
    with (
        patch.dict(os.environ, ENVIRON),
        patch.object(LambdaSimpleBackend, "invoke", _invoke),
        mock_aws(config=simple),
    ):
        yield
