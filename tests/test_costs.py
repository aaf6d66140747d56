"Prices follow AWS's list, every way costs more with more predictions, and a type without a price is named."

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment_engine import costs
from sentiment_engine.costs import (
    HOURS_PER_MONTH,
    LARGE,
    PRICES,
    SMALL,
    WARM_MINUTES,
    Crowd,
    Visit,
    always_on_month,
    asleep_share,
    cheaper,
    crowd_day,
    crowd_limits,
    five_ways,
    lambda_call,
    on_demand_month,
    resting_cost,
    saved_share,
    snapshots_month,
)
from sentiment_engine.deploy.plan import read_template
from tests import ROOT

UNPRICED = "ml.unheard.large"
WAYS = ["always on", "on demand", "serverless", "Lambda", "components"]
models = st.sampled_from([SMALL, LARGE])
amounts = st.floats(0, 1e7)


@pytest.mark.parametrize(
    "price",
    [
        always_on_month,
        lambda kind: five_ways(replace(SMALL, instance=kind), predictions=10),
        lambda kind: on_demand_month(kind, visits=50),
        lambda kind: saved_share(kind, visits=50),
    ],
    ids=["always on", "five ways", "on demand", "saved"],
)
def test_an_instance_type_without_a_price_is_reported(price):
    with pytest.raises(KeyError, match=UNPRICED):
        price(UNPRICED)


# Lambda --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("infra_scripts/templates/*.yaml")), ids=lambda path: path.stem)
def test_every_function_has_the_priced_architecture(path):
    functions = [r for r in read_template(path)["Resources"].values() if r["Type"] == "AWS::Lambda::Function"]
    assert {tuple(f["Properties"]["Architectures"]) for f in functions} <= {("arm64",)}
    assert costs.LAMBDA_GB_SECOND == 0.0000133334  # "Price list: Lambda-GB-Second-ARM, us-east-1"


# Computed by hand from AWS's price list of September 2026, us-east-1
BY_HAND = {
    "10 ms at 1,769 MB": (lambda_call(0.010, 1769), 0.0000002 + 0.010 * 1.7275390625 * 0.0000133334),
    "a started millisecond counts whole": (lambda_call(0.0101, 1024), 0.0000002 + 0.011 * 0.0000133334),
    "nothing but the request": (lambda_call(0, 1769), 0.0000002),
    "SnapStart at rest, 1 GB": (snapshots_month(1024), 2_628_000 * 0.0000015046),
    "SnapStart, a thousand cold starts": (snapshots_month(2048, 1000) - snapshots_month(2048), 2000 * 0.0001397998),
    "five minutes' checks and half a GB": (resting_cost(), 0.0115 + 8640 * (0.0000002 + 0.25 * 0.0000133334)),
    "one visit": (on_demand_month("ml.t2.medium", 1, requests=0) - resting_cost(), 0.056 * 40 / 60),
    "a million visitors' calls": (
        crowd_day(1e6, Crowd(polls=7, predictions=3, numbers=0, cached=0))["API Gateway"],
        10.0,
    ),
    "a million visitors' messages": (crowd_day(1e6, Crowd(numbers=0.001))["messages"], 120.0),
}


@pytest.mark.parametrize(("found", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_prices_match_the_price_list(found, expected):
    assert found == pytest.approx(expected, rel=1e-3)


@given(st.floats(0, 900), st.integers(128, 10_240))
def test_a_function_call_costs_more_with_more_time_or_memory(seconds, memory):
    assert lambda_call(seconds, memory) <= lambda_call(seconds + 0.001, memory)
    assert lambda_call(seconds, memory) <= lambda_call(seconds, memory + 1)


# Months --------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(PRICES)), st.floats(0, 1e6), st.floats(0, 1e4))
def test_visits_that_share_a_run_never_cost_more_than_an_always_on_endpoint(kind, visits, minutes):
    visit = Visit(0, 0, minutes)
    most = min(always_on_month(kind), visits * PRICES[kind] * minutes / 60)
    assert on_demand_month(kind, visits, visit, requests=0) - resting_cost() <= most + 1e-6


@given(st.floats(0, 1e5), st.floats(0, 1e4))
def test_the_share_of_time_asleep_is_between_0_and_1(visits, minutes):
    assert 0 <= asleep_share(visits + 1, minutes) <= asleep_share(visits, minutes) <= 1


@given(models, amounts, amounts, st.floats(0.5, 1000))
def test_more_predictions_never_cost_less(model, one, other, each):
    few, many = (five_ways(model, n, each) for n in sorted((one, other)))
    assert list(few) == WAYS
    # More visits keep a Lambda warm. At most, x * exp(-x) = 1/e of the month's warm periods begin with a cold start.
    periods = HOURS_PER_MONTH * 60 / WARM_MINUTES
    spared = {"Lambda": periods / math.e * lambda_call(model.loading, model.memory_mb)}
    assert all(few[way] <= many[way] + spared.get(way, 1e-6) for way in WAYS)


@given(models)
def test_at_rest_only_always_on_parts_and_alarms_cost_money(model):
    rest = five_ways(model, 0)
    assert rest["on demand"] == rest["serverless"] == rest["Lambda"] == 0
    assert rest["components"] == pytest.approx(0.30)
    assert rest["always on"] == always_on_month(model.instance)


@given(models, amounts)
def test_a_sleeping_endpoint_never_costs_more_than_an_always_on_one(model, predictions):
    ways = five_ways(model, predictions)
    assert ways["on demand"] <= ways["always on"]
    assert ways["components"] <= always_on_month(model.scaled) + 0.30


@pytest.mark.parametrize("model", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", WAYS)
def test_an_option_is_cheaper_than_another_only_within_its_ranges(model, way, other):
    ranges = cheaper(model, way, other)
    for predictions in (1.05 * 2**power for power in range(23)):
        costs = five_ways(model, predictions)
        if all(abs(predictions / end - 1) > 0.01 for both in ranges for end in both):
            assert any(low < predictions < high for low, high in ranges) == (costs[way] < costs[other])
    for end in (end for both in ranges for end in both if 1 < end < 9e6):
        costs = five_ways(model, end)
        assert costs[way] == pytest.approx(costs[other], rel=1e-2)


# A crowd -------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e8), st.floats(1, 100), st.floats(0, 100), st.floats(0, 1), st.floats(0, 1))
def test_more_visitors_cost_more_and_a_cache_reduces_api_costs(visitors, polls, predictions, cached, more):
    crowd = Crowd(polls=polls, predictions=predictions)
    day, larger = crowd_day(visitors, crowd), crowd_day(visitors + 1, crowd)
    assert all(day[service] <= larger[service] for service in day)
    some, most = (Crowd(polls=polls, predictions=predictions, cached=share) for share in sorted((cached, more)))
    for service in ("API Gateway", "Lambda", "DynamoDB", "logs"):
        assert crowd_day(visitors, most)[service] <= crowd_day(visitors, some)[service] + 1e-9
    assert all(crowd_limits(most)[limit] >= crowd_limits(some)[limit] for limit in crowd_limits(some))


def test_limits_are_listed_in_the_order_in_which_they_are_reached():
    # 10 parallel runs of 50 ms are 200 calls a second; 12.01 calls for each visitor, three times as many at the peak.
    (name, visitors), *others = crowd_limits(Crowd(cached=0)).items()
    assert name == "Lambda, new account" and visitors == pytest.approx(200 * 86_400 / 12.01 / 3)
    assert [v for _, v in others] == sorted(v for _, v in others) and others[0][1] > visitors


# Measured values ---------------------------------------------------------------------------------------------------


def test_the_times_of_the_small_model_match_the_benchmark():
    result = json.loads((ROOT / "benchmarks/results/standby.json").read_text())
    measured = next(row for row in result["settings"] if row["memory_mb"] == SMALL.memory_mb)
    assert SMALL.seconds == pytest.approx(measured["ms 60"] / 1000, rel=0.5)
    assert SMALL.loading == pytest.approx(measured["init"], rel=0.5)
