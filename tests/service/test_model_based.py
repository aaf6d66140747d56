"Random lifecycles of the engine in a hostile AWS: its invariants hold after every step and at the end."

import os

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.doubles.fault_world import CAPACITY, CHANGING, FAULTS, NESTED, PHONES, FaultWorld

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", 500))  # for each half
STEPS = 50
LOW = {
    "number_cooldown_minutes": 60,
    "address_cooldown_seconds": 20,
    "daily_starts": 3,
    "daily_messages": 4,
    "daily_standby_texts": 3,
}
OFF = {name: 0 for name in LOW if "cool" in name} | {
    "daily_starts": 9999,
    "daily_messages": 9999,
    "daily_messages_per_number": 9999,
    "daily_standby_texts": 9999,
    "monthly_budget": 1e6,
}

DENIED = "The role has no permission to download the model."
TIGHT = OFF | {"monthly_budget": 1.0}

plans = st.one_of(
    st.just({}),
    st.dictionaries(st.integers(0, 14), st.sampled_from(FAULTS), min_size=1, max_size=2),
)
plans |= st.builds(  # most conditions are for a race of two Lambdas
    lambda at, action: {at: ("nest", action)}, st.integers(0, 8), st.sampled_from(NESTED)
)
which = st.integers(0, 2)


class Life(RuleBasedStateMachine):
    "One engine, its visitors and its faults."

    world = None

    @initialize(
        page=st.sampled_from([1, 100]),
        deleting=st.sampled_from([0, 40, 240]),
        lag=st.sampled_from([0, 10, 100]),
        twice=st.booleans(),
        guards=st.sampled_from([OFF, LOW, TIGHT]),
    )
    def begin(self, page, deleting, lag, twice, guards):
        self.world = FaultWorld(page, deleting, lag, twice, **guards).__enter__()

    @rule(phone=st.sampled_from([None, *PHONES]), plan=plans)
    def start(self, phone, plan):
        self.world.do(("start", phone), plan)

    @rule(what=st.sampled_from(["status", "predict", "extend"]), plan=plans)
    def ask(self, what, plan):
        self.world.do((what,), plan)

    @rule(i=which, plan=plans)
    def sleep(self, i, plan):
        self.world.do(("sleep", i), plan)

    @rule(minutes=st.sampled_from([1, 45, 480, 1440]), plan=plans)
    def awake(self, minutes, plan):
        self.world.do(("awake", minutes), plan)

    @rule(i=which, again=st.booleans(), plan=plans)
    def deliver(self, i, again, plan):
        self.world.do(("deliver", i, again), plan)

    @rule(i=which, again=st.booleans(), plan=plans)
    def wake(self, i, again, plan):
        self.world.do(("wake", i, again), plan)

    @rule(plan=plans)
    def reconcile(self, plan):
        self.world.do(("reconcile",), plan)

    @rule(i=which)
    def up(self, i):
        self.world.do(("up", i))

    @rule(i=which, reason=st.sampled_from([CAPACITY, "The container did not answer /ping.", "", DENIED]))
    def down(self, i, reason):
        self.world.do(("down", i, reason))

    @rule(i=which, status=st.sampled_from([*CHANGING, "OutOfService"]))
    def change(self, i, status):
        self.world.do(("change", i, status))

    @rule(i=which)
    def changed(self, i):
        self.world.do(("changed", i))

    @rule(
        action=st.sampled_from(
            [
                *(("drop", i) for i in range(2)),
                *(("forget", i) for i in range(2)),
                ("vanish", 0),
                ("lose_row",),
                ("expire",),
                ("rubbish", True),
                ("rubbish", False),
                ("deaf", True),
                ("deaf", False),
                *(("sms", mood) for mood in ("works", "refuses", "down", "slow")),
                *(("standby", mood) for mood in ("works", "down", "busy", "slow", "rubbish")),
                ("model", False),
                ("model", True),
            ]
        )
    )
    def surroundings(self, action):
        self.world.do(action)

    @rule(seconds=st.sampled_from([1, 30, 130, 310, 1000, 1801, 2800, 14_401, 86_400]))
    def later(self, seconds):
        self.world.do(("clock", seconds))

    @rule(phone=st.sampled_from(PHONES))
    def visit(self, phone):
        "A successful start, so that most lifecycles see an open model."
        for action in (("start", phone), ("up", 0), ("deliver", -1, False)):
            self.world.do(action, {})

    @invariant()
    def promises(self):
        if self.world:
            self.world.check()

    def teardown(self):
        if self.world is None:
            return
        try:
            self.come_to_rest()
        finally:
            self.world.__exit__()

    def come_to_rest(self):
        """Wait for quiescence, and check that all leftovers are repaired.

        Quiescence means: no faults; every creation and every deletion of an endpoint is complete; all events and
        wake-ups on their way are lost; 301 seconds have passed, so no earlier Lambda is still running. Then one run
        of the reconciler must suffice. A day later it must find nothing running: after one run for an open model,
        and after one more for each change of the instance type.
        """
        self.world.settle(301)
        self.world.do(("reconcile",))
        self.world.check_repaired()
        for _ in range(4):
            self.world.settle(86_400)
            self.world.do(("reconcile",))
            self.world.check_repaired()
        assert self.world.row.state in ("STOPPED", "FAILED")


def live(machine, examples: int, seeds: int):
    "Run `examples` lifecycles; the same ones each time."
    quick = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,) if os.environ.get("MODEL_NO_SHRINK") else (Phase.generate, Phase.shrink),
    )
    run_state_machine_as_test(seed(seeds)(machine), settings=quick)


@pytest.mark.parametrize("half", [1, 2])
def test_a_thousand_random_lifecycles_keep_the_invariants(half):
    live(Life, EXAMPLES, half)


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_twenty_thousand_random_lifecycles_keep_the_invariants(tenth):
    live(Life, 4 * EXAMPLES, 100 + tenth)


LIFE = [("start", None), ("up", 0), ("deliver", -1, False), ("predict",)]
LIFE += [("clock", 1801), ("wake", 0, False), ("reconcile",)]
DONE = [*LIFE[:4], ("sleep", 0), ("reconcile",)]
HOURS = [("awake", 480), *LIFE[1:5], ("vanish", 0), ("reconcile",), *LIFE[1:3], ("clock", 28_800), ("reconcile",)]
CASES = [(LIFE, action) for action in LIFE if action[0] not in ("up", "clock")]
CASES += [(DONE, ("sleep", 0)), (HOURS, ("awake", 480)), (HOURS, ("reconcile",))]


@pytest.mark.parametrize("deleting", [0, 240])
@pytest.mark.parametrize(("life", "spoilt"), CASES)
def test_a_single_fault_at_any_call_keeps_the_invariants(deleting, life, spoilt):
    "Random lives meet some faults rarely: here each fault meets each of the first calls of each function."
    for fault in FAULTS:
        for at in range(15):
            missed = {}  # the fault, if the function makes fewer calls
            with FaultWorld(1, deleting, 0, False, **OFF) as world:
                for action in life:
                    world.do(action, {at: fault} if action == spoilt else {})
                    world.check()
                    missed |= world.plan
            if missed:
                break
