"""The template and samconfig.toml agree with the code, and ask for no more than they need."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from samtranslator.model import apigateway

from handler.app import create_app
from handler.gate import SIMULTANEOUS_SECONDS
from handler.settings import Settings
from tests.aws import template
from tests.support.entry_points import lambda_entry, timestamped_by_gateway
from tests.support.server import ROOT


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return template.deployed()


@pytest.fixture(scope="module")
def function(resources: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = resources["Function"]["Properties"]
    return properties


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a template, however deep."""
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


def test_handler(function: dict[str, Any]) -> None:
    """The handler that the template names responds to the event that the waiting room sends."""
    with lambda_entry(work_seconds=0.01, path=function["Handler"]) as invoke:
        assert invoke(timestamped_by_gateway()).status_code == 200


def test_runtime() -> None:
    """Both functions run on the Python of `.python-version`, for which the artifact is compiled."""
    runtime = f"python{(ROOT / '.python-version').read_text().strip()}"
    resources = template.source()["Resources"]
    assert [
        resources[name]["Properties"]["Runtime"] for name in ("Function", "LocalAuthorizer")
    ] == [runtime] * 2


def test_one_at_a_time(function: dict[str, Any]) -> None:
    """The function has one execution environment."""
    assert function["ReservedConcurrentExecutions"] == 1


def test_timeout(function: dict[str, Any]) -> None:
    """The longest allowed turn ends before Lambda's timeout, with 3 s to spare for the start."""
    longest = max(map(int, template.source()["Parameters"]["WorkSeconds"]["AllowedValues"]))
    assert function["Timeout"] >= longest + SIMULTANEOUS_SECONDS + 3


def test_settings(function: dict[str, Any]) -> None:
    """For each `WorkSeconds`, the function's variables are valid settings of the service.

    The values are strings: SAM CLI finds no row of a mapping by a number.
    """
    work_seconds = template.source()["Parameters"]["WorkSeconds"]
    assert work_seconds["Default"] == f"{Settings().work_seconds:g}"
    for seconds in work_seconds["AllowedValues"]:
        variables = template.resolve(function["Environment"]["Variables"], {"WorkSeconds": seconds})
        turn = int(seconds)
        assert Settings.read(variables) == Settings(
            work_seconds=turn, max_wait_seconds=29 - turn - 0.2, trust_request_start=True
        )


PAUSE = 0.3
"""Seconds that the template allows between a turn's end and the next execution's retry."""


def test_admission(resources: dict[str, Any]) -> None:
    """For each `WorkSeconds`, the gateway admits one more request than can be served in time."""
    source = template.source()
    machine = source["Resources"]["WaitingRoom"]["Properties"]["Definition"]
    admission = source["Mappings"]["Admission"]
    allowed = source["Parameters"]["WorkSeconds"]["AllowedValues"]
    assert list(admission) == allowed
    for seconds, row in admission.items():
        turn = int(seconds) + PAUSE
        assert row["Places"] == machine["TimeoutSeconds"] // turn + 1
        assert 0.9 <= row["PerSecond"] * turn <= 1
        assert row["RetryAfter"] == f"'{math.ceil(1 / row['PerSecond'])}'"
    [settings] = resources["ApiliveStage"]["Properties"]["MethodSettings"]
    row = template.resolve(settings, {"WorkSeconds": "3"})
    assert (row["ThrottlingBurstLimit"], row["ThrottlingRateLimit"]) == (9, 0.3)
    assert (row["ResourcePath"], row["HttpMethod"]) == ("/*", "*")


def test_the_machine_ends_with_the_gateway() -> None:
    """An execution's timeout equals the gateway's; a turn that begins in time ends before it."""
    resources = template.source()["Resources"]
    machine = resources["WaitingRoom"]["Properties"]["Definition"]
    method = resources["Api"]["Properties"]["DefinitionBody"]["paths"]["/test"]["get"]
    timeout = method["x-amazon-apigateway-integration"]["timeoutInMillis"]
    assert 1000 * machine["TimeoutSeconds"] == timeout
    for seconds, row in template.source()["Mappings"]["Admission"].items():
        assert float(row["MaxWaitSeconds"]) + int(seconds) + 0.2 == machine["TimeoutSeconds"]


@pytest.mark.parametrize("ranges", [["0.0.0.0/0", "::/0"], ["198.51.100.7/32", "2001:db8::/32"]])
def test_allowed_ips(ranges: list[str], resources: dict[str, Any]) -> None:
    """By default every address is allowed; the API's policy holds all ranges of a given list."""
    parameter = template.source()["Parameters"]["AllowedIps"]
    assert parameter["Type"] == "CommaDelimitedList"
    assert parameter["Default"].split(",") == ["0.0.0.0/0", "::/0"]
    policy = resources["Api"]["Properties"]["Body"]["x-amazon-apigateway-policy"]
    assert template.resolve(policy, {"AllowedIps": ranges}) == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "execute-api:Invoke",
                "Resource": "execute-api:/*",
                "Condition": {"IpAddress": {"aws:SourceIp": ranges}},
            }
        ],
    }


def test_every_deployment_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that is deployed again gets a new deployment of its API, whatever has changed."""
    names = set()
    for now in range(2):
        monkeypatch.setattr(apigateway.time, "time", lambda now=now: now)
        resources = template.deployed.__wrapped__()
        names |= {name for name in resources if name.startswith("ApiDeployment")}
    assert len(names) == 2


def test_local_entry_point() -> None:
    """SAM CLI and the gateway have the same routes as the app."""
    resources = template.source()["Resources"]
    body = resources["LocalApi"]["Properties"]["DefinitionBody"]
    routes = {path: list(methods) for path, methods in body["paths"].items()}
    gateway = resources["Api"]["Properties"]["DefinitionBody"]["paths"]
    assert routes == {path: list(methods) for path, methods in gateway.items()}
    assert routes == {
        path: list(methods) for path, methods in create_app(Settings()).openapi()["paths"].items()
    }
    integration = body["paths"]["/test"]["get"]["x-amazon-apigateway-integration"]
    assert integration["type"] == "aws_proxy"


def test_nothing_local_is_deployed(resources: dict[str, Any]) -> None:
    """A deployment makes one function and one gateway, and nothing that only SAM CLI uses."""
    local = {"LocalApi", "LocalAuthorizer"}
    assert not [name for name in resources if name.startswith(tuple(local))]
    assert not [node for node in walk(resources) if local & set(map(str, node.values()))]
    types = [resource["Type"] for resource in resources.values()]
    assert [name for name in types if name.startswith("AWS::Lambda::")] == ["AWS::Lambda::Function"]
    assert not [name for name in types if name.startswith("AWS::ApiGatewayV2::")]
    assert template.source()["Conditions"]["IsLocal"] == {
        "Fn::Equals": [{"Ref": "AWS::StackName"}, ""]
    }


def test_least_privilege(resources: dict[str, Any]) -> None:
    """Each role is allowed one thing on one resource.

    The delivery of the state machine's log is the exception: its actions take no resource.
    """
    roles = {
        name: [
            (statement["Action"], statement["Resource"])
            for policy in resource["Properties"].get("Policies", [])
            for statement in policy["PolicyDocument"]["Statement"]
        ]
        for name, resource in resources.items()
        if resource["Type"] == "AWS::IAM::Role"
    }
    assert roles == {
        "FunctionRole": [
            (
                ["logs:CreateLogStream", "logs:PutLogEvents"],
                {"Fn::GetAtt": ["FunctionLogs", "Arn"]},
            )
        ],
        "ApiRole": [("states:StartSyncExecution", {"Ref": "WaitingRoom"})],
        "WaitingRoomRole": [
            ("lambda:InvokeFunction", {"Fn::GetAtt": ["Function", "Arn"]}),
            (
                [
                    "logs:CreateLogDelivery",
                    "logs:GetLogDelivery",
                    "logs:UpdateLogDelivery",
                    "logs:DeleteLogDelivery",
                    "logs:ListLogDeliveries",
                    "logs:PutResourcePolicy",
                    "logs:DescribeResourcePolicies",
                    "logs:DescribeLogGroups",
                ],
                "*",
            ),
        ],
    }
    assert not [node for node in walk(resources) if "ManagedPolicyArns" in node]


def test_assume_role_policies(resources: dict[str, Any]) -> None:
    """Each role can be assumed by one service, Step Functions' only for this account's machines.

    AWS does not document that the other two services pass the account that they act for.
    """
    trusted = {
        name: resource["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        for name, resource in resources.items()
        if resource["Type"] == "AWS::IAM::Role"
    }
    assert {name: [one["Principal"] for one in trusted[name]] for name in trusted} == {
        "FunctionRole": [{"Service": "lambda.amazonaws.com"}],
        "ApiRole": [{"Service": "apigateway.amazonaws.com"}],
        "WaitingRoomRole": [{"Service": "states.amazonaws.com"}],
    }
    [statement] = trusted["WaitingRoomRole"]
    values = {"AWS::Partition": "aws", "AWS::Region": "eu-central-1", "AWS::AccountId": "123"}
    assert template.resolve(statement["Condition"], values) == {
        "StringEquals": {"aws:SourceAccount": "123"},
        "ArnLike": {"aws:SourceArn": "arn:aws:states:eu-central-1:123:stateMachine:*"},
    }
