"""The template as CloudFormation gets it, translated by SAM's own translator."""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any
from unittest.mock import patch

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from tests.support.server import ROOT


@cache
def source() -> dict[str, Any]:
    """Return the template as it is written."""
    template: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
    return template


class NoManagedPolicies:
    """The template uses no managed policy, so none needs to be looked up at AWS."""

    def load(self) -> dict[str, str]:
        return {}


@cache
def deployed() -> dict[str, Any]:
    """Return the resources that a deployment makes, without those whose Condition is `IsLocal`."""
    packaged = deepcopy(source())
    for resource in packaged["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    with patch.dict(os.environ, AWS_DEFAULT_REGION="eu-central-1"):
        template = transform(packaged, {}, NoManagedPolicies())
    return {
        name: resource
        for name, resource in template["Resources"].items()
        if resource.get("Condition") != "IsLocal"
    }


def resolve(node: Any, values: Mapping[str, Any]) -> Any:
    """Replace the intrinsic functions in a part of the template.

    `values` holds what `Ref` returns and, under `Name.Attribute`, what `Fn::GetAtt` returns.
    """
    if isinstance(node, list):
        return [resolve(child, values) for child in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        [(function, argument)] = node.items()
        argument = resolve(argument, values)
        if function == "Ref":
            return values[argument]
        if function == "Fn::GetAtt":
            return values[".".join(argument)]
        if function == "Fn::FindInMap":
            name, key, entry = argument
            return source()["Mappings"][name][key][entry]
        if function == "Fn::Join":
            return argument[0].join(argument[1])
        if function == "Fn::Sub":
            text, local = argument if isinstance(argument, list) else (argument, {})
            return re.sub(r"\$\{([\w:.]+)\}", lambda name: {**values, **local}[name[1]], text)
    return {key: resolve(child, values) for key, child in node.items()}
