"What a Start must pass before it costs anything, through the Lambdas' own handlers."

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from engine_double import ADA, BOB, CAROL, World, aws_error

HOME, OFFICE = "198.51.100.7", "203.0.113.9"
DAY = 86_400


@pytest.fixture
def make_world(monkeypatch):
    return lambda **settings: World(monkeypatch, **settings)


def refused(answer) -> tuple[int, str, int]:
    "Return status, code and the seconds to wait."
    status, body = answer
    return status, body["error"]["code"], body["error"]["retryAfterSeconds"]


def sleep(world):
    "Let the run come up and end."
    if world.row.state == "CREATING":
        world.endpoint_becomes("InService")
    world.pass_time(world.settings.idle_minutes * 60 + 90)
    assert world.row.state == "STOPPED"


def test_a_number_waits_out_its_cool_down(make_world):
    world = make_world(number_cooldown_minutes=60)
    world.in_service(ADA)
    sleep(world)
    since = world.clock.now - world.row.startedAt
    assert refused(world.start(ADA)) == (429, "number_cooldown", int(3600 - since))
    assert world.row.state == "STOPPED" and not world.sagemaker.endpoints
    assert world.start(BOB)[0] == 202
    world.clock.now = world.row.startedAt + 3600
    assert world.start(ADA)[1]["outcome"] == "joined"


def test_pressing_start_twice_is_no_second_message(make_world):
    world = make_world()
    assert [world.start(ADA)[1]["outcome"] for _ in range(3)] == ["started", "joined", "joined"]
    assert world.status()["subscribers"] == 1


def test_a_number_whose_start_failed_may_try_again_at_once(make_world):
    world = make_world()
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure", "no luck")]
    assert world.start(ADA)[0] == 503
    assert world.start(ADA)[1]["outcome"] == "started"


def test_an_address_waits_out_its_cool_down(make_world):
    world = make_world()
    assert world.start(address=HOME)[0] == 202
    assert refused(world.start(ADA, address=HOME))[:2] == (429, "address_cooldown")
    assert world.start(address=HOME)[1]["outcome"] == "joined"  # joining without a number costs nothing
    assert world.start(BOB, address=OFFICE)[1]["outcome"] == "joined"
    world.clock.now += 61
    assert world.start(ADA, address=HOME)[1]["subscribers"] == 2


def test_a_refusal_is_not_remembered_against_anybody(make_world):
    world = make_world()
    world.start(ADA, address=HOME)
    world.start(ADA, address=OFFICE)  # is on the list already: nothing to do, nothing to remember
    assert world.start(BOB, address=OFFICE)[0] == 202
    assert refused(world.start(CAROL, address=OFFICE))[1] == "address_cooldown"
    assert world.start(CAROL, address="192.0.2.1")[0] == 202


def test_simultaneous_numbers_from_one_address_put_one_on_the_list(make_world):
    world = make_world()
    numbers = [f"+1202555{n:04}" for n in range(100, 120)]
    world.start()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: world.start(number, address=HOME), numbers))
    assert sorted(code for code, _ in answers) == [202] + [429] * 19 and world.status()["subscribers"] == 1


def test_the_day_has_a_limit_of_messages_even_for_those_who_come_at_once(make_world):
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


def test_the_day_has_a_limit_of_starts(make_world):
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


def test_the_month_has_a_budget_that_is_never_exceeded(make_world):
    world = make_world(monthly_budget=0.55, daily_starts=1000)
    for _ in range(100):  # the money ends long before
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


def test_a_run_of_an_unknown_instance_type_counts_as_the_dearest(make_world):
    world = make_world(instance_types=("ml.unknown.large",), monthly_budget=100)
    world.start()
    sleep(world)
    assert world.status()["spentThisMonth"] > 0.3  # half an hour of the dearest type
    assert world.status()["savedThisMonth"] is None


def test_the_status_says_what_sleeping_saved(make_world):
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


def test_the_cost_of_the_run_in_progress_counts_in_the_month(make_world):
    world = make_world()
    world.start()
    world.clock.now += 1800
    status = world.status()
    assert status["costSoFar"] == status["spentThisMonth"] == 0.028


def test_a_run_that_failed_says_what_it_has_cost_and_counts_once(make_world):
    world = make_world()
    world.in_service()
    world.clock.now += 1800
    world.endpoint_becomes("Failed", "The machine is gone.")
    failed = world.status()
    world.clock.now += 3600
    status = world.status()
    assert status["state"] == "FAILED" and status["costSoFar"] == failed["costSoFar"] == round(0.056 * 2100 / 3600, 4)
    assert status["spentThisMonth"] == failed["spentThisMonth"] == pytest.approx(status["costSoFar"], abs=1e-4)


def test_no_number_or_address_can_be_read_from_what_is_remembered(make_world):
    world = make_world()
    world.start(ADA, "Ada", address=HOME)
    sleep(world)
    item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
    text = json.dumps(item)
    assert ADA not in text and HOME not in text and "Ada" not in text
    assert [len(mark) for mark in (*item["told"]["M"], *item["seen"]["M"])] == [6, 6]


def test_a_large_request_for_a_start_is_refused(make_world):
    world = make_world()
    status, body = world.request("POST", "/start", {"name": "x" * 20_000})
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_account_numbers_do_not_reach_the_visitor(make_world):
    world = make_world()
    said = "User: arn:aws:sts::123456789012:assumed-role/x is not authorized to perform: sagemaker:CreateEndpoint"
    world.sagemaker.errors["create_endpoint"] = [aws_error("AccessDeniedException", said)]
    status, body = world.start()
    assert status == 503 and "not authorized" in body["error"]["message"]
    assert "123456789012" not in json.dumps(body) + json.dumps(world.status())
