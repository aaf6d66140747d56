"Costs outside the monthly budget: requests, busy functions, messages and the page have limits and alarms."

import copy

import pytest

from sentiment_engine.costs import flood_hour, limits_of, site_flood_hour
from sentiment_engine.deploy.packaging import monitoring_parameters
from sentiment_engine.deploy.plan import read_template, resources_of
from sentiment_engine.settings import Settings
from tests import ROOT

ENGINE = read_template(ROOT / "infra_scripts/templates/backend.yaml")
MONITORING = read_template(ROOT / "infra_scripts/templates/monitoring.yaml")
LIMITS = limits_of(ENGINE["Resources"])


def alarm(short: str) -> dict:
    found = [r["Properties"] for r in MONITORING["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    return next(p for p in found if p["AlarmName"]["Fn::Sub"] == "${Prefix}-" + short)


def threshold(short: str) -> float:
    value = alarm(short)["Threshold"]
    return float(MONITORING["Parameters"][value["Ref"]]["Default"] if isinstance(value, dict) else value)


def test_every_route_has_limits_and_a_flood_costs_only_a_few_dollars_a_day():
    routes = [r["Properties"]["RouteKey"] for r in ENGINE["Resources"].values() if r["Type"].endswith("V2::Route")]
    assert sorted(LIMITS) == sorted(routes)
    for route, limit in LIMITS.items():
        assert 0 < limit.rate <= 20 and 0 < limit.at_once <= 20, route
        assert 24 * flood_hour(limit) < 20, route
    assert 24 * flood_hour(*LIMITS.values()) < 50


@pytest.mark.parametrize("route", LIMITS)
def test_flood_prices_are_computed_from_the_template(route):
    before = flood_hour(LIMITS[route])
    changed = copy.deepcopy(ENGINE["Resources"])
    stage = next(r["Properties"] for r in changed.values() if r["Type"].endswith("V2::Stage"))
    for settings in (stage["DefaultRouteSettings"], *stage["RouteSettings"].values()):
        settings["ThrottlingRateLimit"] *= 10
    faster = limits_of(changed)[route]
    assert faster.rate == 10 * LIMITS[route].rate and flood_hour(faster) > before
    changed[faster.function]["Properties"]["MemorySize"] *= 10
    assert flood_hour(limits_of(changed)[route]) > flood_hour(faster)


def test_a_flood_triggers_an_alarm_within_one_period():
    requests = 3600 * sum(limit.rate for limit in LIMITS.values())
    assert threshold("many-requests") < 3600 * LIMITS["GET /status"].rate < requests
    assert threshold("held-predictions") < 3600 * 1000 * LIMITS["POST /predict"].at_once
    assert alarm("many-requests")["Period"] == alarm("held-predictions")["Period"] == 3600
    assert all(alarm(f"many-{what}")["AlarmActions"] for what in ("requests", "messages", "page-requests"))
    assert 24 * site_flood_hour(threshold("many-page-requests") / 3600) < 10  # a flood below the alarm costs little


@pytest.mark.parametrize("daily", [1, 5, 100, 1000])
def test_the_message_alarm_depends_on_the_daily_limit(daily):
    given = monitoring_parameters(Settings(daily_messages=daily), "q", "a1", "E1", "us-east-1")
    assert 1 <= float(given["ManyMessages"]) <= daily


def test_a_hundred_idle_pages_trigger_no_alarm():
    polls = 100 * 3600 / 20  # the page polls every twenty seconds while nothing changes
    assert polls <= threshold("many-requests") and polls / 3600 <= LIMITS["GET /status"].rate


@pytest.mark.parametrize(("region", "expected"), [("us-east-1", True), ("eu-central-1", False)])
def test_page_requests_are_watched_only_in_the_region_of_cloudfront_metrics(region, expected):
    given = monitoring_parameters(Settings(), "q", "a1", "E1", region)
    assert ("ManyPageRequests" in resources_of(MONITORING, given, region)) is expected
