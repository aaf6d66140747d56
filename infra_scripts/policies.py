"""The policies of the templates, with everything filled in that CloudFormation would: for audit.py and the tests."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from sentiment_engine.deploy.plan import read_template

# An engine named lab, in an account of ones.
LAB = {"Prefix": "lab", "TableName": "lab-state", "AWS::AccountId": "1" * 12, "AWS::Region": "us-east-1"}
LAB |= {"AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com", "HostedZoneId": "Z1", "Environment": "production"}
LAB |= {"Repository": "owner/name", "ArtifactsBucket": "lab-foundation-artifactsbucket-1x2y"}
BOUNDARY = f"arn:aws:iam::{LAB['AWS::AccountId']}:policy/lab-boundary-us-east-1"
PROVIDER = f"arn:aws:iam::{LAB['AWS::AccountId']}:oidc-provider/token.actions.githubusercontent.com"
LAB |= {"Boundary": BOUNDARY, "Provider": PROVIDER, "ProviderArn": PROVIDER}
NOTHING = object()  # what AWS::NoValue leaves


def arn_of(name: str, attribute: str = "") -> str:
    "Make up the ARN of a resource of the templates, like the one that AWS would."
    region, account = LAB["AWS::Region"], LAB["AWS::AccountId"]
    if name.endswith("Bucket"):
        return f"arn:aws:s3:::lab-{'site' if name == 'SiteBucket' else 'foundation'}-{name.lower()}-1x2y"
    if name.endswith("Role"):
        return f"arn:aws:iam::{account}:role/lab-engine-{name}-1X2Y"
    if name.endswith("Logs"):
        folder = re.sub("(?<!^)([A-Z])", r"-\1", name.removesuffix("Logs")).lower()
        return f"arn:aws:logs:{region}:{account}:log-group:/aws/lambda/lab-{folder}:*"
    known = {"Table": f"dynamodb:{region}:{account}:table/lab-state"}
    known |= {"DeadLetters": f"sqs:{region}:{account}:lab-dead-letters"}
    return f"arn:aws:{known[name]}" if name in known else "lab"


def filled(
    value: object,  # a piece of a template, from `read_template`
    known: Mapping[str, str],  # parameters and names
    sides: Mapping[str, bool],  # what the conditions come to; those not named do not hold
) -> Any:
    "Work out references and choose the sides of conditions."
    if isinstance(value, list):
        return [v for each in value if (v := filled(each, known, sides)) is not NOTHING]
    if not isinstance(value, dict):
        return value
    ((name, of),) = list(value.items())[:1] or [("", None)]
    if name == "Ref":
        return NOTHING if of == "AWS::NoValue" else known.get(of, of)
    if name == "Fn::Sub":
        return re.sub(r"\$\{([^}]+)\}", lambda m: known.get(m[1]) or arn_of(*m[1].split(".")), of)
    if name == "Fn::GetAtt":
        return arn_of(*of)
    if name == "Fn::If":
        return filled(of[1] if sides.get(of[0]) else of[2], known, sides)
    return {k: v for k, each in value.items() if (v := filled(each, known, sides)) is not NOTHING}


def _documents(name: str, resource: Mapping) -> Iterator[tuple[str, dict]]:
    "List the policy documents of a resource: what each is, and the document."
    properties = resource.get("Properties", {})
    if trust := properties.get("AssumeRolePolicyDocument"):  # what a trust policy is about, it need not say
        on = f"arn:aws:iam::{LAB['AWS::AccountId']}:role/lab-{name}-1X2Y"
        yield "trust", trust | {"Statement": [s | {"Resource": on} for s in trust["Statement"]]}
    for policy in properties.get("Policies", ()):
        yield policy["PolicyName"], policy["PolicyDocument"]
    if "PolicyDocument" in properties:
        yield "policy", properties["PolicyDocument"]


def policies_of(template: Path) -> Iterator[tuple[str, str, dict]]:  # resource, which of its policies, document
    "List every policy of a template, once for each way in which its conditions can fall out."
    read = read_template(template)
    names = sorted(read.get("Conditions", {}))
    for name, resource in read["Resources"].items():
        seen = []
        for way in product((True, False), repeat=len(names)):
            sides = dict(zip(names, way, strict=True))
            for what, document in _documents(name, filled(resource, LAB, sides)):
                if document not in seen:
                    seen.append(document)
                    yield name, what, document
