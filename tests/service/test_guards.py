"The checks that a Start must pass before it costs money, through the Lambdas' own handlers."

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error

HOME, OFFICE = "198.51.100.7", "203.0.113.9"
DAY = 86_400


@pytest.fixture
def make_world(monkeypatch):
    return lambda **settings: World(monkeypatch, **settings)


def refused(answer) -> tuple[int, str, int]:
    "Return status, code and seconds to wait."
    status, body = answer
    return status, body["error"]["code"], body["error"]["retryAfterSeconds"]


def sleep(world):
    "Let the run become ready and end."
    if world.row.state == "CREATING":
        world.endpoint_becomes("InService")
    world.pass_time(world.settings.idle_minutes * 60 + 90)
    assert world.row.state == "STOPPED"


def test_a_number_must_wait_for_its_cool_down(make_world):
    world = make_world(number_cooldown_minutes=60)
    world.in_service(ADA)
    sleep(world)
    since = world.clock.now - world.row.startedAt
    assert refused(world.start(ADA)) == (429, "number_cooldown", int(3600 - since))
    assert world.row.state == "STOPPED" and not world.sagemaker.endpoints
    assert world.start(BOB)[0] == 202
    world.clock.now = world.row.startedAt + 3600
    assert world.start(ADA)[1]["outcome"] == "joined"


def test_pressing_start_twice_adds_no_second_subscriber(make_world):
    world = make_world()
    assert [world.start(ADA)[1]["outcome"] for _ in range(3)] == ["started", "joined", "joined"]
    assert world.status()["subscribers"] == 1


def test_a_number_may_retry_at_once_after_a_failed_start(make_world):
    world = make_world()
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure", "no luck")]
    assert world.start(ADA)[0] == 503
    assert world.start(ADA)[1]["outcome"] == "started"


def test_an_address_must_wait_for_its_cool_down(make_world):
    world = make_world()
    assert world.start(address=HOME)[0] == 202
    assert refused(world.start(ADA, address=HOME))[:2] == (429, "address_cooldown")
    assert world.start(address=HOME)[1]["outcome"] == "joined"  # joining without a number costs nothing
    assert world.start(BOB, address=OFFICE)[1]["outcome"] == "joined"
    world.clock.now += 61
    assert world.start(ADA, address=HOME)[1]["subscribers"] == 2


SECRET, EDGE = "a secret of CloudFront and the API", "198.51.100.1"
VIEWERS = ("192.0.2.1:46532", "192.0.2.2:46532", "2001:db8:1::7:46532", "[2001:db8:2::8]:46532")


def start_behind(world: World, phone: str | None, address: str, **headers: str) -> tuple[int, dict]:
    "Start through CloudFront, whose address the gateway sees."
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return world.request("POST", "/start", {"phone": phone}, address=address, headers=sent)


def test_visitors_behind_cloudfront_have_their_own_addresses(make_world):
    world = make_world()
    world.use(replace(world.engine, origin_secret=SECRET))
    for viewer, phone in zip(VIEWERS, (None, ADA, BOB, CAROL), strict=True):
        sent = {"x_origin_secret": SECRET, "cloudfront_viewer_address": viewer}
        assert start_behind(world, phone, EDGE, **sent)[0] == 202
        again = start_behind(world, "+12025550199", EDGE, **sent)
        assert refused(again)[:2] == (429, "address_cooldown")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),  # a visitor has 2^64 addresses
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
@pytest.mark.parametrize("proved", [True, False])
def test_addresses_of_one_network_count_as_one(make_world, first, second, same, proved):
    world = make_world()
    world.use(replace(world.engine, origin_secret=SECRET))

    def start(phone: str, address: str) -> tuple[int, dict]:
        sent = {"x_origin_secret": SECRET, "cloudfront_viewer_address": f"{address}:46532"} if proved else {}
        return start_behind(world, phone, EDGE if proved else address, **sent)

    assert start(ADA, first)[0] == 202
    assert start(BOB, second)[0] == (429 if same else 202)


@pytest.mark.parametrize("known", [SECRET, ""], ids=["with a secret", "without a secret"])
@pytest.mark.parametrize("sent", [{}, {"x_origin_secret": ""}, {"x_origin_secret": "guess"}, {"x_origin_secret": "ü"}])
def test_a_forged_viewer_address_changes_nothing(make_world, known, sent):
    world = make_world()
    world.use(replace(world.engine, origin_secret=known))
    assert start_behind(world, None, HOME, cloudfront_viewer_address=VIEWERS[0], **sent)[0] == 202
    for viewer in VIEWERS:
        forged = start_behind(world, ADA, HOME, cloudfront_viewer_address=viewer, **sent)
        assert refused(forged)[:2] == (429, "address_cooldown")


def test_a_refused_start_is_not_recorded(make_world):
    world = make_world()
    world.start(ADA, address=HOME)
    world.start(ADA, address=OFFICE)  # already on the list: nothing to do, nothing to record
    assert world.start(BOB, address=OFFICE)[0] == 202
    assert refused(world.start(CAROL, address=OFFICE))[1] == "address_cooldown"
    assert world.start(CAROL, address="192.0.2.1")[0] == 202


def test_simultaneous_numbers_from_one_address_add_one_subscriber(make_world):
    world = make_world()
    numbers = [f"+1202555{n:04}" for n in range(100, 120)]
    world.start()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: world.start(number, address=HOME), numbers))
    assert sorted(code for code, _ in answers) == [202] + [429] * 19 and world.status()["subscribers"] == 1


def test_the_daily_message_limit_holds_for_simultaneous_starts(make_world):
    world = make_world(daily_messages=5)
    numbers = [f"+1202555{n:04}" for n in range(100, 120)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(world.start, numbers))
    codes = sorted((code, body.get("error", {}).get("code")) for code, body in answers)
    assert [code for code, _ in codes].count(202) == 5 and codes[-1] == (429, "too_many_waiting")
    sleep(world)
    assert len(world.phone.sent) == 5
    assert refused(world.start(ADA))[1] == "too_many_waiting" and world.start()[0] == 202
    sleep(world)
    world.clock.now += DAY
    assert world.start(ADA)[0] == 202


def test_the_daily_start_limit_is_enforced(make_world):
    world = make_world(daily_starts=2)
    world.clock.now -= world.clock.now % DAY
    for _ in range(2):
        world.start()
        sleep(world)
    status, code, wait = refused(world.start(ADA))
    assert (status, code, wait) == (429, "too_many_starts", int(DAY - world.clock.now % DAY))
    assert not world.sagemaker.endpoints and not world.row.subscribers
    world.clock.now += wait
    assert world.start()[0] == 202


def test_the_monthly_budget_is_never_exceeded(make_world):
    world = make_world(monthly_budget=0.55, daily_starts=1000)
    for _ in range(100):  # the budget ends long before
        if (answer := world.start())[0] != 202:
            break
        sleep(world)
        world.clock.now += 60
    status, code, wait = refused(answer)
    assert (status, code) == (402, "over_budget") and world.row.state == "STOPPED"
    month = world.status()
    assert 0.05 < month["spentThisMonth"] <= month["monthlyBudget"] == 0.55
    world.clock.now += wait + 1
    assert world.status()["spentThisMonth"] == 0 and world.start()[0] == 202


def test_a_run_of_an_unknown_instance_type_counts_as_the_most_expensive(make_world):
    world = make_world(instance_types=("ml.unknown.large",), monthly_budget=100)
    world.start()
    sleep(world)
    assert world.status()["spentThisMonth"] > 0.3  # half an hour of the most expensive type
    assert world.status()["savedThisMonth"] is None


def test_the_status_shows_the_savings_from_sleeping(make_world):
    world = make_world()
    assert world.status()["savedThisMonth"] is None
    world.start()
    begun = world.clock.now
    sleep(world)
    world.clock.now = begun + 3600
    status = world.status()
    spent = status["spentThisMonth"]
    assert 0.056 * 30 / 60 < spent < 0.056 * 34 / 60
    assert status["savedThisMonth"] == pytest.approx(0.056 - spent, abs=1e-3)


def test_the_run_in_progress_counts_towards_the_monthly_cost(make_world):
    world = make_world()
    world.start()
    world.clock.now += 1800
    status = world.status()
    assert status["costSoFar"] == status["spentThisMonth"] == 0.028


def test_a_failed_run_reports_its_cost_and_counts_once(make_world):
    world = make_world()
    world.in_service()
    world.clock.now += 1800
    world.endpoint_becomes("Failed", "The machine is gone.")
    failed = world.status()
    world.clock.now += 3600
    status = world.status()
    assert status["state"] == "FAILED" and status["costSoFar"] == failed["costSoFar"] == round(0.056 * 2100 / 3600, 4)
    assert status["spentThisMonth"] == failed["spentThisMonth"] == pytest.approx(status["costSoFar"], abs=1e-4)


def test_stored_marks_reveal_no_number_or_address(make_world):
    world = make_world()
    world.start(ADA, "Ada", address=HOME)
    sleep(world)
    item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
    text = json.dumps(item)
    assert ADA not in text and HOME not in text and "Ada" not in text
    assert [len(mark) for mark in (*item["told"]["M"], *item["seen"]["M"])] == [6, 6]


def test_an_oversized_start_request_is_refused(make_world):
    world = make_world()
    status, body = world.request("POST", "/start", {"name": "x" * 20_000})
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_visitors_never_see_account_numbers(make_world):
    world = make_world()
    said = "User: arn:aws:sts::123456789012:assumed-role/x is not authorized to perform: sagemaker:CreateEndpoint"
    world.sagemaker.errors["create_endpoint"] = [aws_error("AccessDeniedException", said)]
    status, body = world.start()
    assert status == 503 and "not authorized" in body["error"]["message"]
    assert "123456789012" not in json.dumps(body) + json.dumps(world.status())


@pytest.mark.parametrize("begin", [0, 20 * 3600])  # the UTC day changes in the middle of the test
@pytest.mark.parametrize("settings", [{}, {"number_cooldown_minutes": 0, "daily_messages_per_number": 5}])
def test_a_number_gets_a_limited_number_of_messages_in_24_hours(make_world, begin, settings):
    world = make_world(daily_starts=1000, daily_messages=1000, monthly_budget=1000, **settings)
    world.clock.now += -world.clock.now % DAY + begin
    limit, told = world.settings.daily_messages_per_number, []
    for n in range(40):  # for more than a day
        status, body = world.start(ADA, address=f"192.0.2.{n}")
        if status == 429:
            assert body["error"]["code"] == "number_limit" and 0 < body["error"]["retryAfterSeconds"] <= DAY
            assert ADA not in json.dumps(body)
            assert world.start(BOB if n % 25 == 0 else None, address=f"192.0.2.{n}")[0] == 202  # no other one waits
        sent = len(world.phone.sent)
        world.endpoint_becomes("InService")
        told += [world.clock.now] * sum(to == ADA for to, _ in world.phone.sent[sent:])
        world.pass_time(1860)
        world.clock.now += 1200
        world.clock.now += 1200
    assert len(told) > limit
    assert all(sum(at - DAY < other <= at for other in told) <= limit for at in told)


def test_a_refused_number_is_accepted_again_at_the_announced_time(make_world):
    world = make_world(daily_messages_per_number=1)
    world.in_service(ADA)
    sleep(world)
    wait = refused(world.start(ADA))[2]
    world.clock.now += wait - 60
    assert refused(world.start(ADA))[1] == "number_limit"
    world.clock.now += 61
    assert world.start(ADA)[0] == 202


def test_a_failed_start_does_not_use_up_a_daily_message(make_world):
    world = make_world(daily_messages_per_number=1)
    for _ in range(4):
        world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure", "no luck")]
        assert world.start(ADA)[0] == 503
    assert world.start(ADA)[0] == 202


def test_simultaneous_starts_with_one_number_get_one_message(make_world):
    world = make_world(number_cooldown_minutes=0, daily_messages_per_number=2)
    world.start()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(world.start, [ADA] * 16))
    assert {code for code, _ in answers} == {202} and world.status()["subscribers"] == 1
    world.endpoint_becomes("InService")
    assert world.phone.tried == [ADA]


def test_marks_of_an_earlier_version_cause_no_error(make_world):
    world = make_world()
    world.in_service(ADA)
    sleep(world)
    old = {"M": {"a1b2c3": {"N": str(int(world.clock.now) - 30)}}}
    world.dynamodb.update_item(
        TableName=world.settings.table,
        Key=world.engine.table.key,
        UpdateExpression="SET told = :old, seen = :old",
        ExpressionAttributeValues={":old": old},
    )
    world.reconcile()
    assert world.start(BOB, address=HOME)[0] == 202 and world.start(CAROL, address=OFFICE)[0] == 202


def items(world) -> list[dict]:
    return world.dynamodb.scan(TableName=world.settings.table)["Items"]


def test_marks_and_their_keys_expire_after_a_day(make_world):
    world = make_world()
    world.start(ADA, address=HOME)
    sleep(world)
    before, keys = world.row, next(item for item in items(world) if "today" in item)
    assert before.told and before.seen and len(bytes.fromhex(keys["today"]["S"])) == 32
    assert world.clock.now < int(keys["expiresAt"]["N"]) <= world.clock.now + 2 * DAY  # then DynamoDB deletes it
    world.clock.now += DAY
    world.reconcile()
    assert not world.row.told and not world.row.seen
    world.start(ADA, address=HOME)
    sleep(world)
    world.clock.now += DAY
    world.start(ADA, address=HOME)
    assert keys["today"]["S"] not in json.dumps(items(world))
    assert not world.row.told.keys() & before.told.keys()  # the same number has another mark


def test_the_provider_quota_is_checked_after_all_other_guards(make_world):
    "A refused Start, or one without a number, sends no request to the provider."
    world, asked = make_world(daily_starts=4, daily_messages=3, monthly_budget=5), []
    world.phone.quota = lambda: asked.append(1) or 7

    def never_asks(*answers):
        for what in answers:
            before, code = len(asked), world.start(*what)[0]
            assert len(asked) == before, what
            yield code

    assert set(never_asks(("+12025550",), ("+33612",), ("call me",))) == {400}
    world.model = None
    assert set(never_asks((ADA,))) == {503}
    world.model = {"modelName": "m", "version": "7"}
    assert world.start(ADA, address=HOME)[0] == 202 and len(asked) == 1
    assert set(never_asks(*[(ADA,)] * 20, (None,))) == {202}  # already on the list
    assert set(never_asks(*[(BOB, "", HOME)] * 20)) == {429}  # the address must wait
    world.start(BOB, address=OFFICE)
    world.start(CAROL, address="192.0.2.1")
    assert len(asked) == 3
    assert set(never_asks(("+12025550199",))) == {429}  # no more messages today
    world.endpoint_becomes("InService")
    assert set(never_asks((ADA,), ("+12025550199",))) == {200}  # it is awake
    sleep(world)
    assert set(never_asks((ADA,), (BOB,), ("+12025550199",))) == {429}  # cool-downs, and the daily messages
    for _ in range(3):
        world.start()
        sleep(world)
    world.clock.now += 3600
    assert set(never_asks((ADA,))) == {429}  # the daily starts
    world.clock.now += DAY
    world.engine.settings.__dict__["monthly_budget"] = 0.01
    assert set(never_asks((ADA,))) == {402}


@pytest.mark.parametrize("way", ["start", "join"])
def test_a_number_used_on_both_sides_of_midnight_keeps_one_mark(make_world, way):
    "Two marks of one number reveal 48 bits of it, and both keys are stored."
    world = make_world(daily_messages_per_number=2)
    world.clock.now += DAY - world.clock.now % DAY - 2 * 3600
    world.start(ADA, address=HOME)
    sleep(world)
    world.clock.now += 2 * 3600
    if way == "join":
        world.start(address=OFFICE)
    assert world.start(ADA, address=HOME)[0] == 202
    assert [len(uses) for uses in world.row.told.values()] == [2]
    assert sorted(map(len, world.row.seen.values())) == ([1, 2] if way == "join" else [2])
    sleep(world)
    world.clock.now += 3600
    assert refused(world.start(ADA))[1] == "number_limit"


def test_marks_in_the_far_future_have_no_effect_and_are_deleted(make_world):
    world = make_world()
    world.start(ADA, address=HOME)
    sleep(world)
    future = {"L": [{"N": str(int(world.clock.now) + 10**9)}]}
    (told,), (seen,) = world.row.told, world.row.seen
    world.dynamodb.update_item(
        TableName=world.settings.table,
        Key=world.engine.table.key,
        UpdateExpression="SET told.#told = :future, seen.#seen = :future",
        ExpressionAttributeNames={"#told": told, "#seen": seen},
        ExpressionAttributeValues={":future": future},
    )
    assert world.start(ADA, address=HOME)[0] == 202
    assert [*world.row.told.values(), *world.row.seen.values()] == [[int(world.clock.now)]] * 2


@pytest.mark.parametrize("state", ["CREATING", "FAILED"])
@pytest.mark.parametrize("edit", ["REMOVE since", "REMOVE startedAt", "SET since = :odd", "SET since = :early"])
def test_the_cost_of_a_run_is_never_negative_and_null_if_unknown(make_world, state, edit):
    world = make_world()
    world.start()
    if state == "FAILED":
        world.endpoint_becomes("Failed", "The image does not exist.")
    values = {name: value for name, value in ((":odd", {"S": "x"}), (":early", {"N": "5"})) if name in edit}
    world.dynamodb.update_item(
        TableName=world.settings.table,
        Key=world.engine.table.key,
        UpdateExpression=edit,
        **({"ExpressionAttributeValues": values} if values else {}),
    )
    unknown = "startedAt" in edit or (state == "FAILED" and "early" not in edit)
    for _ in range(2):
        assert world.status()["costSoFar"] == (None if unknown else 0)
