"The audit's findings, and its report of unused exceptions."

import pytest
import yaml

from infra_scripts.checks import audit

OPEN = """
Resources:
  Everybodys:
    Type: AWS::S3::Bucket
    Properties: { AccessControl: PublicRead }
"""


def test_an_open_bucket_is_found(tmp_path):
    (tmp_path / "open.yaml").write_text(OPEN)
    found = audit.template_findings(tmp_path)
    assert ("CKV_AWS_20", "Everybodys") in found  # everybody may read it


def test_a_folder_without_templates_fails_the_audit(tmp_path):
    with pytest.raises(RuntimeError, match="checkov checked nothing"):
        audit.template_findings(tmp_path)


POLICY = """
Conditions: { Wide: !Equals [a, b] }
Resources:
  Reader:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        Version: "2012-10-17"
        Statement: [{ Effect: Allow, Principal: { Service: lambda.amazonaws.com }, Action: "sts:AssumeRole" }]
      Policies:
        - PolicyName: reads
          PolicyDocument:
            Version: "2012-10-17"
            Statement:
              - { Effect: Allow, Action: ["s3:GetObject"], Resource: !Sub "arn:${AWS::Partition}:s3:::the-bucket" }
              - !If [Wide, { Effect: Allow, Action: ["s3:ReadAll"], Resource: "*" }, !Ref "AWS::NoValue"]
"""


def test_a_wrong_resource_is_found_on_both_sides_of_a_condition(tmp_path):
    (tmp_path / "role.yaml").write_text(POLICY)
    found = audit.policy_findings(tmp_path)
    assert found == {
        ("RESOURCE_MISMATCH", "Reader", "s3:GetObject"),  # an object in a bucket, not the bucket
        ("UNKNOWN_ACTION", "Reader", "Unknown action s3:ReadAll"),
    }
    allowed = [{"resources": ["Reader"], "what": ["s3:Get*", "s3:Put*"], "why": "a test"}]
    said = audit.policy_complaints(found, {"RESOURCE_MISMATCH": allowed})
    assert said == [
        "parliament: UNKNOWN_ACTION Reader Unknown action s3:ReadAll",
        "parliament: nothing needs RESOURCE_MISMATCH Reader s3:Put* in audit_allowed.yaml",
    ]


def test_a_folder_without_policies_fails_the_audit(tmp_path):
    (tmp_path / "open.yaml").write_text(OPEN)
    with pytest.raises(RuntimeError, match="parliament checked nothing"):
        audit.policy_findings(tmp_path)


def test_a_secret_key_is_found(tmp_path):
    key = "AKIA" + "Q3EGRZ7LKXBMPL4Z"
    (tmp_path / "leaked.py").write_text(f"key = '{key}'\n")
    found = audit.secret_findings(["leaked.py"], tmp_path)
    assert found == {("leaked.py", 1, "AWS Access Key", audit.mark_of(key))}


def test_an_exception_for_one_key_does_not_hide_another():
    found = {("aws.py", 9, "Secret Keyword", audit.mark_of("local"))}
    known = {"aws.py": {"texts": ["local"], "why": "the key of the local cloud"}}
    assert audit.secret_complaints(found, known) == []
    leaked = found | {("aws.py", 12, "Secret Keyword", audit.mark_of("somebody's"))}
    assert audit.secret_complaints(leaked, known) == ["secret: aws.py:12 (Secret Keyword)"]
    assert audit.secret_complaints(set(), known) == ["secret: nothing needs 'local' of aws.py in audit_allowed.yaml"]


def test_findings_must_match_the_exceptions():
    said = audit.complaints({("CKV_1", "New")}, {("CKV_2", "Old")}, "checkov")
    assert said == ["checkov: CKV_1 New", "checkov: nothing needs CKV_2 Old in audit_allowed.yaml"]


def test_every_exception_has_a_reason():
    known = yaml.safe_load(audit.ALLOWED.read_text())
    reasons = [entry["why"] for kind in ("checkov", "secrets") for entry in known[kind].values()]
    reasons += [entry["why"] for entries in known["parliament"].values() for entry in entries]
    assert len(reasons) > 10 and all(len(reason) > 20 for reason in reasons)


def test_known_vulnerabilities_and_failed_lookups_are_distinguished():
    faulty = {"name": "leaky", "version": "1.0", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["1.1"]}]}
    fine, unasked = {"name": "fine", "version": "2.0", "vulns": []}, {"name": "own", "skip_reason": "not on PyPI"}
    assert audit.package_findings([fine]) == []
    assert audit.package_findings([faulty, fine])[0] == "leaky 1.0: PYSEC-2026-1, fixed in 1.1"
    assert audit.package_findings([fine, unasked])[0].startswith("PyPI has no answer for 1 of 2 packages")
