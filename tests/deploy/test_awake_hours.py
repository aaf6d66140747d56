"The setting awake_hours becomes a schedule that begins at the same time by the clock, and a price."

import re
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ministack.services import eventbridge

from sentiment_engine.deploy.awake_hours import (
    awake_month,
    awake_parameters,
    hours_beyond_budget,
    minutes_left,
    schedule_of,
    wake_within_hours,
)
from sentiment_engine.deploy.plan import Plan, bill, read_template, resources_of
from sentiment_engine.deploy.stacks import delete_stack, deploy_stack
from sentiment_engine.settings import DAYS, AwakeHours, Settings, awake_hours_of
from tests import ROOT
from tests.doubles.local_models import until
from tests.local.test_cloud import ROLE, function, invoke, table

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Australia/Lord_Howe")
ZONES += ("Pacific/Apia", "Africa/Casablanca", "America/Port-au-Prince")
OFFICE = "Mon-Fri 09:00-17:00 Europe/Berlin"
minutes = st.integers(0, 1439)
moments = st.integers(1_767_225_600, 1_956_528_000)  # 2026 to 2031


@st.composite
def written(draw) -> tuple[str, AwakeHours]:
    "Write random hours in a usual spelling, and return their meaning too."
    parts, days = [], set()
    for first, length in draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7)), min_size=1, max_size=3)):
        names = [DAYS[(first + i) % 7] for i in range(length)]
        days |= set(names)
        parts.append(names[0] if length == 1 else f"{names[0]}-{names[-1]}")
    start, end, zone = draw(minutes), draw(minutes), draw(st.sampled_from(ZONES))
    spelt = draw(st.sampled_from((str.upper, str.lower, str.title)))(draw(st.sampled_from((",", ", "))).join(parts))
    dash = draw(st.sampled_from(("-", " - ", "–", " – ")))
    text = f"{spelt} {start // 60:02}:{start % 60:02}{dash}{end // 60:02}:{end % 60:02} {zone}"
    length = (end - start) % 1440 or 1440
    return text, AwakeHours(tuple(day for day in DAYS if day in days), start, length, zone)


@given(written())
@example(("Mon-Fri 9:00-17:00 Europe/Berlin", AwakeHours(DAYS[:5], 540, 480, "Europe/Berlin")))
@example(("Fri-Mon 22:00-06:00 UTC", AwakeHours(("MON", "FRI", "SAT", "SUN"), 1320, 480, "UTC")))
@example(("Mon,Wed,Fri 00:00-00:00 UTC", AwakeHours(("MON", "WED", "FRI"), 0, 1440, "UTC")))
def test_every_spelling_of_the_hours_is_understood(case):
    text, meant = case
    assert awake_hours_of(Settings(awake_hours=text).awake_hours) == meant


WRONG = {
    "daily": "like 'Mon-Fri 09:00-17:00 Europe/Berlin'",
    "Mon-Fri 09:00-17:00": "like",
    "Mon-Fri 9-17 Europe/Berlin": "like",
    "Mon- 09:00-17:00 UTC": "like",
    "Monday 09:00-17:00 UTC": "days as in Mon-Fri or Mon,Wed,Fri",
    "Mon-Tue-Wed 09:00-17:00 UTC": "days as in",
    "Mon,,Tue 09:00-17:00 UTC": "days as in",
    "Mo-Fr 09:00-17:00 UTC": "days as in",
    "Mon-Fri 09:00-24:00 UTC": "midnight is 00:00",
    "Mon-Fri 09:60-17:00 UTC": "00:00 to 23:59",
    "Mon-Fri 09:00-17:00 Europe/Berlim": "did you mean Europe/Berlin",
    "Mon-Fri 09:00-17:00 Europe": "the name of a time zone",
    "Mon-Fri 09:00-17:00 ../../etc/passwd": "the name of a time zone",
}


@pytest.mark.parametrize("text", WRONG)
def test_the_error_explains_what_is_expected(text):
    with pytest.raises(ValueError, match=f"^awake_hours must .*{re.escape(WRONG[text])}"):
        Settings(awake_hours=text)


@pytest.mark.parametrize("endpoint", ["serverless", "lambda"])
def test_an_endpoint_that_never_sleeps_has_no_hours(endpoint):
    with pytest.raises(ValueError, match=f"awake_hours must be empty with the endpoint {endpoint}"):
        Settings(endpoint=endpoint, awake_hours=OFFICE)
    assert not Settings(endpoint=endpoint).awake_hours


def begins(hours: AwakeHours, after: float) -> Iterator[tuple[float, bool]]:  # (time, whether it exists in the zone)
    "List when the next hours begin in the zone's local time."
    zone, day = ZoneInfo(hours.zone), datetime.fromtimestamp(after, ZoneInfo(hours.zone)).date()
    for later in range(60):
        at: date = day + timedelta(days=later)
        begun = datetime(at.year, at.month, at.day, *divmod(hours.start, 60), tzinfo=zone)
        exists = begun.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == begun.replace(tzinfo=None)
        if DAYS[at.weekday()] in hours.days and begun.timestamp() > after:
            yield begun.timestamp(), exists


def fires(hours: AwakeHours, after: float) -> Iterator[float]:
    "List when a scheduler fires that evaluates the expression in the zone and skips nonexistent times."
    zone, fields = ZoneInfo(hours.zone), eventbridge._parse_cron_fields(schedule_of(hours))
    at = datetime.fromtimestamp(after, zone).replace(fold=0)
    while at := eventbridge._cron_next_fire(fields, at):
        back = at.astimezone(UTC).astimezone(zone)
        if back.replace(tzinfo=None) == at.replace(tzinfo=None) and at.timestamp() > after:
            yield at.timestamp()


@given(written(), moments)
def test_the_schedule_fires_when_the_hours_begin(case, now):
    hours = case[1]
    expected = [at for at, exists in begins(hours, now) if exists]
    assert list(islice(fires(hours, now), 8)) == expected[:8]


@given(written(), moments)
def test_the_remaining_minutes_follow_from_the_last_begin(case, now):
    hours = case[1]
    ends = [at + hours.minutes * 60 for at, _ in begins(hours, now - 3 * 86_400) if at <= now]
    found, left = minutes_left(hours, now), max(0, max(ends, default=0) - now)
    assert left <= found * 60 < left + 60


class Functions:
    "Lambda's client."

    def __init__(self):
        self.calls = []

    def invoke(self, **given):
        self.calls.append(given)


@pytest.mark.parametrize(("hour", "left"), [(8, 0), (9, 480), (16, 60), (17, 0)])
def test_a_deployment_within_the_hours_starts_the_model(hour, left):
    functions, now = Functions(), datetime(2026, 3, 6, hour, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    assert wake_within_hours(functions, Settings(awake_hours=OFFICE), now) == left
    assert [call["Payload"] for call in functions.calls] == ([f'{{"awakeMinutes": {left}}}'] if left else [])
    assert wake_within_hours(functions, Settings(), now) == 0


def test_the_template_contains_a_schedule_only_with_hours():
    template = read_template(ROOT / "infra_scripts/templates/backend.yaml")
    with_hours = resources_of(template, awake_parameters(Settings(awake_hours=OFFICE)))
    assert with_hours["AwakeHours"] == "AWS::Scheduler::Schedule"
    assert with_hours.keys() - resources_of(template, awake_parameters(Settings())).keys() == {"AwakeHours"}
    target = template["Resources"]["AwakeHours"]["Properties"]["Target"]
    assert target["Input"] == {"Fn::Sub": '{"awakeMinutes": ${AwakeMinutes}}'} and "DeadLetterConfig" in target


@pytest.mark.parametrize(
    ("budget", "says"), [(20, ""), (10, "end before the month does"), (5, "before the month"), (0.5, "never begin")]
)
def test_the_plan_shows_the_cost_of_the_hours_and_warns_about_the_budget(budget, says):
    settings = Settings(awake_hours=OFFICE, monthly_budget=budget)
    hours, cost = awake_month(settings)
    assert 173 < hours < 175 and cost == pytest.approx(hours * 0.056)
    lines = "\n".join(bill(Plan([], []), settings))
    assert f"awake hours  ${cost:.2f} a month for 174 hours on ml.t2.medium" in lines
    assert ("CAREFUL" in lines) == bool(says) and says in hours_beyond_budget(settings) + lines
    assert "awake hours" not in "\n".join(bill(Plan([], []), Settings()))


TEMPLATE = """
Resources:
  Hours:
    Type: AWS::Scheduler::Schedule
    Properties:
      Name: by-the-clock
      ScheduleExpression: %s
      ScheduleExpressionTimezone: Asia/Kolkata
      FlexibleTimeWindow: { Mode: "OFF" }
      Target: { Arn: "%s", RoleArn: "%s", Input: '{"awakeMinutes": 60}' }
"""


def test_the_local_cloud_uses_the_time_zone_of_a_schedule_after_a_clock_change(cloud, tmp_path):
    table(cloud, "hours")
    put = "boto3.client('dynamodb').put_item(TableName='hours', Item={'id': {'S': str(time.time())}})"
    arn, zone = function(cloud, "hours", put), ZoneInfo("Asia/Kolkata")
    function(cloud, "now", "return time.time()")
    now = invoke(cloud, "now")
    begin = datetime.fromtimestamp(now, zone).replace(second=0, microsecond=0) + timedelta(hours=2)
    (tmp_path / "hours.yaml").write_text(TEMPLATE % (f"cron({begin.minute} {begin.hour} * * ? *)", arn, ROLE))
    deploy_stack(cloud.client("cloudformation"), "hours", tmp_path / "hours.yaml", {}, {})
    found = cloud.client("scheduler").get_schedule(Name="by-the-clock")
    assert found["ScheduleExpressionTimezone"] == "Asia/Kolkata"
    rows = lambda: cloud.client("dynamodb").scan(TableName="hours")["Items"]  # noqa: E731
    time.sleep(2)
    cloud.advance_clock(3600)
    time.sleep(2.5)
    assert rows() == []
    cloud.advance_clock(3700)
    (row,) = until(rows, 20)
    assert 0 <= float(row["id"]["S"]) - begin.timestamp() < 240
    time.sleep(2)
    assert len(rows()) == 1
    delete_stack(cloud.client("cloudformation"), "hours")
