"Break the engine on purpose, one promise at a time, and see that the model-based test notices each."

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    "One change of the package's source; `old` must be there exactly once."

    name: str
    module: str
    old: str
    new: str
    by: str = ""  # the test that must notice it; empty: the model-based one


STATE, LIFE, GUARDS, USAGE = (f"service/{name}" for name in ("model_state", "lifecycle", "guards", "usage"))
MODEL = "tests/test_model_based.py"
MUTANTS = [
    Mutant(
        "any run",
        STATE,
        """f"{names['runId']} = :run", """,
        """f"{names['runId']} <> :s0 AND :run = :run", """,
        "tests/test_model_state.py::test_no_action_touches_another_run",
    ),
    Mutant(
        "any state",
        STATE,
        """f"{names['state']} IN ({states})\"""",
        """f"{names['state']} IN ({states}, :run) OR {names['runId']} = :run\"""",
        "tests/test_model_state.py::test_every_action_in_every_state",
    ),
    Mutant(
        "cool-down of a number",
        STATE,
        "(attribute_not_exists({path}) OR {path} = {value})",
        "(attribute_not_exists({path}) OR {path} = {value} OR {path} <> {value})",
        "tests/test_model_state.py::test_a_guard_holds_for_two_who_read_the_row_at_once",
    ),
    Mutant(
        "touch moves back",
        STATE,
        'earlier = {"shutdownAt": ("<=", shutdown_at)}',
        'earlier = {"runId": ("=", run_id)}',
        "tests/test_model_state.py::test_the_deadline_never_moves_back",
    ),
    Mutant(
        "stop before the deadline",
        STATE,
        'conditions={"shutdownAt": ("<=", deadline)}',
        'conditions={"runId": ("=", run_id)}',
        "tests/test_model_state.py::test_stopping_checks_the_deadline_in_the_same_write",
    ),
    Mutant(
        "claim of any run",
        STATE,
        '"#run = :run AND #state <> :creating AND ',
        '":run = :run AND #run <> :creating AND #state <> :creating AND ',
        "tests/test_model_state.py::test_a_subscriber_is_claimed_once",
    ),
    Mutant(
        "claim while creating",
        STATE,
        "#state <> :creating AND",
        "#state <> :run AND :creating = :creating AND",
        "tests/test_model_state.py::test_a_subscriber_is_claimed_once",
    ),
    Mutant(
        "claim twice",
        STATE,
        "attribute_not_exists(#subscribers.#key.#claim) OR",
        "attribute_exists(#subscribers) OR",
        "tests/test_model_state.py::test_a_subscriber_is_claimed_once",
    ),
    Mutant(
        "settle with any token",
        STATE,
        '"#subscribers.#key.#claim = :token",',
        '"attribute_exists(#subscribers.#key.#claim) AND :token = :token",',
        "tests/test_model_state.py::test_a_subscriber_is_claimed_once",
    ),
    Mutant(
        "healing overwrites",
        USAGE,
        '"ConditionExpression": " AND ".join(as_read),',
        '"ConditionExpression": " OR ".join([*as_read, "attribute_exists(#h0)", "attribute_not_exists(#h0)"]),',
        "tests/test_hand_edits.py::test_healing_never_undoes_what_somebody_writes_meanwhile",
    ),
    Mutant(
        "nothing is healed",
        USAGE,
        "if item.get(name) != value}",
        "if item.get(name) != value and name == 'nothing'}",
        "tests/test_hand_edits.py::test_every_field_alone_may_be_missing_while_it_starts_and_while_it_runs",
    ),
    Mutant(
        "two runs are open",
        USAGE,
        '"size(#open) = :none"',
        '"size(#open) >= :none"',
        "tests/test_usage.py::test_two_starts_of_which_one_lost_its_row_create_one_endpoint",
    ),
    Mutant(
        "a prediction is booked twice",
        USAGE,
        '"attribute_not_exists(#asked.#token) AND "',
        '""',
        "tests/test_usage.py::test_a_booking_that_is_sent_twice_counts_once_whatever_others_book_meanwhile",
    ),
    Mutant(
        "a run of the future never ends",
        LIFE,
        "row.startedAt if row.startedAt < time.time() + CLOCKS else 0",
        "row.startedAt",
        "tests/test_hand_edits.py::test_a_run_ends_in_its_longest_life_whatever_instants_somebody_writes",
    ),
    Mutant(
        "a run is booked twice",
        USAGE,
        '"ConditionExpression": "attribute_exists(#open.#run)",',
        '"ConditionExpression": "attribute_exists(#open) OR attribute_exists(#open.#run)",',
        "tests/test_lost_answers.py::test_a_life_whose_every_write_is_sent_twice_is_the_same_life",
    ),
    Mutant(
        "one month pays for the other",
        USAGE,
        "until = min(ended, next_month(begun).timestamp())",
        "until = ended",
        "tests/test_usage.py::test_a_run_over_the_turn_of_the_month_costs_each_month_its_share",
    ),
    Mutant(
        "what nobody has recorded is not booked",
        LIFE,
        "        adopt_run(engine.usage, run_id, dearest, made or time.time())\n",
        "        dearest = ''\n",
        "tests/test_usage.py::test_an_endpoint_that_both_tables_have_forgotten_is_found_deleted_and_booked",
    ),
    Mutant(
        "an endpoint about to be created counts as gone",
        LIFE,
        'return "Unborn"  #',
        "return clean_up(engine, run_id)  #",
        "tests/test_usage.py::test_an_endpoint_that_is_about_to_be_created_without_its_row_is_waited_for",
    ),
    Mutant(
        "a start beside an endpoint that is left",
        LIFE,
        "        if _still_there(engine):\n",
        "        if not engine:\n",
        "tests/test_lifecycle.py::test_a_start_is_refused_until_what_an_earlier_run_left_is_deleted",
    ),
    Mutant(
        "an endpoint that is being deleted counts as gone",
        LIFE,
        "left = {run_id: status for run_id, status in said.items() if status}",
        "left = {run_id: status for run_id, status in said.items() if status not in GOING}",
        "tests/test_usage.py::test_an_endpoint_that_aws_does_not_delete_rings_within_a_quarter_of_an_hour",
    ),
    Mutant(
        "silence about what is not deleted",
        LIFE,
        "        emit(engine.settings.prefix, NotDeleted=stuck)\n",
        "        pass\n",
        "tests/test_usage.py::test_an_endpoint_that_aws_does_not_delete_rings_within_a_quarter_of_an_hour",
    ),
    Mutant(
        "refused endpoints count as starts",
        LIFE,
        'existed=refusal(error) in ("broken", "throttled")',
        "existed=True",
        "tests/test_hand_edits.py::test_a_model_that_is_gone_is_no_start_of_the_day_and_the_reason_names_it",
    ),
    Mutant(
        "own writes are not recognised",
        STATE,
        'row.token == values.get("token") or',
        'row.token == "" or',
        "tests/test_lost_answers.py::test_each_transition_recognises_itself_and_nobody_elses",
    ),
    Mutant(
        "the version before the last type's",
        STATE,
        '"modelVersion": model_version}',
        '"modelVersion": row.modelVersion}',
        "tests/test_hand_edits.py::test_the_answer_names_the_version_that_serves",
    ),
    Mutant(
        "a second tab is forgotten",
        STATE,
        'alone = key and "again" not in row.subscribers[key]',
        "alone = key",
        "tests/test_hand_edits.py::test_a_number_in_two_tabs_gets_the_one_message_that_the_second_tab_was_promised",
    ),
    Mutant(
        "a start that is too late opens",
        LIFE,
        "if left < min(SHORTEST_SERVICE, engine.settings.idle_minutes * 60):",
        "if left < -86_400:",
        "tests/test_hand_edits.py::test_a_start_that_is_up_when_its_run_is_over_serves_nobody_and_says_so",
    ),
    Mutant(
        "tries without an end",
        STATE,
        "for tries in range(START_TRIES):",
        "for tries in range(10**9):",
        "tests/test_hand_edits.py::test_a_start_that_never_gets_its_turn_ends_with_a_clear_sentence",
    ),
    Mutant(
        "abandoned claims are kept",
        STATE,
        "for key, token in dead.items())",
        "for key, token in dead.items() if not key)",
    ),
    Mutant(
        "abandoned at once",
        STATE,
        "ABANDONED = 300",
        "ABANDONED = -1",
        "tests/test_lifecycle.py::test_a_sender_at_work_is_not_taken_for_dead",
    ),
    Mutant(
        "expiry is never cancelled", STATE, "attribute_exists(expiresAt) AND", "attribute_not_exists(expiresAt) AND"
    ),
    Mutant(
        "deadline without a longest life",
        LIFE,
        "min(now + settings.idle_minutes * 60, _longest_life(settings, row))",
        "now + settings.idle_minutes * 60",
    ),
    Mutant(
        "no roll back",
        LIFE,
        "states.roll_back(engine.table, row, reason, subscriber)",
        "None",
        "tests/test_faults.py::test_fault_3_a_start_that_throws_leaves_nothing_behind",
    ),
    Mutant(
        "failed start is not deleted",
        LIFE,
        'left = try_delete_endpoint(engine, row.runId, existed=refusal(error) in ("broken", "throttled"))',
        'left = ""',
        "tests/test_faults.py::test_fault_3_a_start_that_throws_leaves_nothing_behind",
    ),
    Mutant("failed run is not cleaned up", LIFE, "row.leftover)\n    clean_up(engine, row.runId)\n", "row.leftover)\n"),
    Mutant(
        "an event tells nobody",
        LIFE,
        "        notify(engine, begun + TELL_SECONDS)\n    return outcome",
        "        pass\n    return outcome",
        "tests/test_lifecycle.py::test_one_failing_number_stops_nobody_elses_message",
    ),
    Mutant("stop without deletion", LIFE, "if clean_up(engine, row.runId) not in GOING:", "if not engine:"),
    Mutant(
        "unfinished deletion counts",
        LIFE,
        "if clean_up(engine, row.runId) not in GOING:\n        return False",
        "clean_up(engine, row.runId)",
    ),
    Mutant("configs stay", LIFE, "    _unless_gone(sagemaker.delete_endpoint_config, EndpointConfigName=name)\n", ""),
    Mutant("endpoints stay", LIFE, "    _unless_gone(sagemaker.delete_endpoint, EndpointName=name)\n", ""),
    Mutant(
        "missing is an error",
        LIFE,
        "        if not is_missing(e):\n            raise\n\n\ndef delete_endpoint",
        "        raise\n\n\ndef delete_endpoint",
    ),
    Mutant("no canary", LIFE, "            canary(engine, row.runId)\n", "            pass\n"),
    Mutant(
        "canary believes anything",
        LIFE,
        'prediction["label"] not in ("NEGATIVE", "POSITIVE")',
        'prediction["label"] == ""',
    ),
    Mutant(
        "event is believed",
        LIFE,
        'status == "InService" and row.state in (CREATING, IN_SERVICE)',
        "row.state in (CREATING, IN_SERVICE)",
        "tests/test_lifecycle.py::test_the_last_try_of_an_early_event_is_left_to_the_reconciler",
    ),
    Mutant(
        "orphans without tags", LIFE, "if run_id != alive and _is_tagged(engine, run_id, arn)", "if run_id != alive"
    ),
    Mutant(
        "row before list",
        LIFE,
        "    listed, usage = _listed(engine), read_usage(engine.usage)\n    row = states.read_row(engine.table)\n",
        "    row = states.read_row(engine.table)\n    listed, usage = _listed(engine), read_usage(engine.usage)\n",
        "tests/test_lifecycle.py::test_a_run_that_begins_while_orphans_are_sought_is_left_alone",
    ),
    Mutant(
        "alive is an orphan",
        LIFE,
        "run_id != alive and _is_tagged",
        "_is_tagged",
        "tests/test_lifecycle.py::test_orphans_of_ours_are_deleted_and_nothing_else",
    ),
    Mutant("orphans stay", LIFE, "parts = (repair, delete_orphans,", "parts = (repair,"),
    Mutant("nothing is repaired", LIFE, "parts = (repair, delete_orphans,", "parts = (delete_orphans,"),
    Mutant(
        "never armed again",
        LIFE,
        "if _schedules(engine, row.runId):",
        "if row:",
        "tests/test_lifecycle.py::test_a_lost_schedule_is_armed_again",
    ),
    Mutant(
        "reconciler tells nobody",
        LIFE,
        "    _try(report, notify, engine, begun + TELL_SECONDS)",
        "    report['notify'] = 0",
        "tests/test_lifecycle.py::test_a_sender_that_dies_leaves_no_second_message",
    ),
    Mutant(
        "sleeping row tells nobody",
        LIFE,
        "if row.state in (CREATING, STOPPING):\n        return 0",
        "if row.state in (CREATING, STOPPING, STOPPED):\n        return 0",
        "tests/test_lifecycle.py::test_who_joined_a_start_that_failed_is_told",
    ),
    Mutant(
        "interrupted start is never failed",
        LIFE,
        "not status and now - row.since > CREATE_GRACE",
        "not status and now < 0",
        "tests/test_lifecycle.py::test_a_start_that_died_before_it_created_anything",
    ),
    Mutant(
        "no grace for a start",
        LIFE,
        "CREATE_GRACE = 120",
        "CREATE_GRACE = -1",
        "tests/test_lifecycle.py::test_a_start_that_died_before_it_created_anything",
    ),
    Mutant(
        "an endpoint that is there is an error",
        LIFE,
        'return refusal(e) == "already there"',
        "return False",
        "tests/test_lifecycle.py::test_a_create_that_took_effect_but_whose_answer_was_lost",
    ),
    Mutant(
        "dead endpoint goes unnoticed",
        LIFE,
        "if describe(engine, row.runId)[0] in (*GOING, *DOWN):",
        'if describe(engine, row.runId)[0] == "none":',
        "tests/test_lifecycle.py::test_an_endpoint_deleted_by_hand_ends_the_run",
    ),
    Mutant(
        "a stop is not finished",
        LIFE,
        'return "stopped" if finish_stopping(engine, row) else "stopping"\n    return "asleep"',
        'return "stopping"\n    return "asleep"',
        "tests/test_lifecycle.py::test_a_shutdown_that_died_halfway_is_finished",
    ),
    Mutant(
        "deadline is never looked at",
        LIFE,
        "    if time.time() >= row.shutdownAt:",
        "    if time.time() < 0:",
        "tests/test_lifecycle.py::test_an_overdue_run_is_stopped_without_a_schedule",
    ),
    Mutant(
        "next endpoint before the first is deleted",
        LIFE,
        "if try_delete_endpoint(engine, row.leftover, LOOKS):\n        return None",
        "try_delete_endpoint(engine, row.leftover, LOOKS)",
        "tests/test_lifecycle.py::test_no_second_endpoint_is_created_before_the_first_is_deleted",
    ),
    Mutant(
        "an accepted deletion counts",
        LIFE,
        "if not (status := _settled(engine, run_id, looks)):",
        "if not (status := str()):",
        "tests/test_lifecycle.py::test_no_second_endpoint_is_created_while_the_first_outlives_its_accepted_deletion",
    ),
    Mutant(
        "two create the next endpoint",
        STATE,
        'conditions={"leftover": ("=", row.leftover)})',
        'conditions={"runId": ("=", row.runId)})',
        "tests/test_lifecycle.py::test_two_who_find_the_first_endpoint_deleted_create_one",
    ),
    Mutant(
        "retry forgets the old endpoint",
        STATE,
        '"reason": _reasons(row, reason, several=True), "leftover": row.leftover or row.runId}',
        '"reason": _reasons(row, reason, several=True), "leftover": ""}',
        "tests/test_lifecycle.py::test_no_second_endpoint_is_created_before_the_first_is_deleted",
    ),
    Mutant(
        "failed run forgets its endpoint",
        STATE,
        '"reason": _reasons(row, reason), "leftover": row.leftover or row.runId}',
        '"reason": _reasons(row, reason), "leftover": ""}',
        "tests/test_lifecycle.py::test_an_early_event_of_an_endpoint_that_was_left_is_tried_again",
    ),
    Mutant(
        "hopeless failures are retried",
        LIFE,
        'return refusal(reason) not in ("denied", "missing")',
        "return True",
        "tests/test_lifecycle.py::test_what_no_other_instance_type_can_help_ends_the_run_at_once",
    ),
    Mutant(
        "only missing capacity is retried",
        LIFE,
        'return refusal(reason) not in ("denied", "missing")',
        'return refusal(reason) == "no capacity"',
        "tests/test_lifecycle.py::test_an_endpoint_that_does_not_come_up_is_tried_once_on_each_instance_type",
    ),
    Mutant(
        "a region without the instance type ends the start",
        LIFE,
        'return refusal(e) in ("no capacity", "no such type")',
        'return refusal(e) == "no capacity"',
        "tests/test_lifecycle.py::test_an_instance_type_that_is_refused_takes_the_next",
    ),
    Mutant(
        "an instance type is tried twice",
        LIFE,
        "types = list(dict.fromkeys(settings.instance_types))",
        "types = list(settings.instance_types)",
        "tests/test_lifecycle.py::test_an_instance_type_that_is_listed_twice_is_tried_once",
    ),
    Mutant(
        "earlier reasons are forgotten",
        STATE,
        'return f"{before}{told}"[:REASONS_LIMIT]',
        "return told",
        "tests/test_lifecycle.py::test_an_endpoint_that_does_not_come_up_is_tried_once_on_each_instance_type",
    ),
    Mutant(
        "hard limit after everything else",
        LIFE,
        "if row.state in (CREATING, IN_SERVICE) and time.time() >= _longest_life(engine.settings, row):",
        "if False:",
        "tests/test_lifecycle.py::test_no_trouble_lets_an_endpoint_outlive_the_hard_limit",
    ),
    Mutant(
        "an overdue endpoint needs the row",
        LIFE,
        "        clean_up(engine, row.runId)\n        raise\n",
        "        raise\n",
        "tests/test_lifecycle.py::test_no_trouble_lets_an_endpoint_outlive_the_hard_limit",
    ),
    Mutant(
        "early events are dropped",
        LIFE,
        "    if _age(event) < LAST_TRY:",
        "    if not event:",
        "tests/test_lifecycle.py::test_an_event_that_overtakes_sagemakers_description_is_tried_again",
    ),
    Mutant(
        "early events of what was left are dropped",
        LIFE,
        "(row.runId, row.leftover) if row.state == CREATING else (row.leftover,)",
        "(row.runId,) if row.state == CREATING else ()",
        "tests/test_lifecycle.py::test_an_early_event_of_an_endpoint_that_was_left_is_tried_again",
    ),
    Mutant(
        "the last try is a dead letter",
        LIFE,
        "    if _age(event) < LAST_TRY:",
        "    if event:",
        "tests/test_lifecycle.py::test_the_last_try_of_an_early_event_is_left_to_the_reconciler",
    ),
    Mutant(
        "logs of living endpoints are deleted",
        LIFE,
        "over = endpoint not in alive and",
        "over =",
        "tests/test_lifecycle.py::test_the_log_of_an_endpoint_that_is_alive_is_never_deleted",
    ),
    Mutant(
        "logs of others expire",
        LIFE,
        "if ours.fullmatch(endpoint):",
        "if ours.match(endpoint) or endpoint:",
        "tests/test_lifecycle.py::test_logs_of_endpoints_expire_and_those_of_old_runs_are_deleted",
    ),
    Mutant(
        "all logs at once",
        LIFE,
        "if sum(changed.values()) == LOG_CHANGES:",
        "if not changed:",
        "tests/test_lifecycle.py::test_many_old_logs_are_deleted_a_few_at_a_time",
    ),
    Mutant(
        "claims are not counted",
        STATE,
        "claimed = {key: {**entry, **_CLAIM} for",
        "claimed = {key: entry for",
        "tests/test_model_state.py::test_the_rows_size_decides_how_many_can_wait_and_a_full_row_lives_through_a_whole_run",
    ),
    Mutant(
        "characters instead of bytes",
        STATE,
        "        return len(value.encode())\n",
        "        return len(value)\n",
        "tests/test_model_state.py::test_the_size_is_never_estimated_too_low",
    ),
    Mutant(
        "everybody fits into a nearly full row",
        STATE,
        "len(row.subscribers) + 1 + free // ENTRY_LIMIT",
        "len(row.subscribers) + 1 + free // 100",
        "tests/test_model_state.py::test_those_who_join_a_nearly_full_row_at_once_never_overfill_it",
    ),
    Mutant(
        "a replaced entry goes unnoticed",
        STATE,
        '{"subscribers": ("size <", places)} | _as_read(row)',
        '{"subscribers": ("size <", places)}',
        "tests/test_model_state.py::test_an_entry_that_was_replaced_since_the_row_was_read_is_noticed",
    ),
    Mutant(
        "a dead sender's row expires",
        LIFE,
        "    states.forget_expiry(engine.table)  # always",
        "    if sent:\n        states.forget_expiry(engine.table)  # always",
        "tests/test_lifecycle.py::test_a_sender_that_dies_leaves_no_second_message",
    ),
    Mutant(
        "no limit of starts a day",
        GUARDS,
        "(starts := usage.starts.get(day_of(now), 0)) >= settings.daily_starts",
        "(starts := usage.starts.get(day_of(now), 0)) < 0",
        "tests/test_guards.py::test_the_day_has_a_limit_of_starts",
    ),
    Mutant(
        "no budget",
        GUARDS,
        "if spent_in_month(usage, now) + dearest > settings.monthly_budget:",
        "if dearest < 0:",
        "tests/test_guards.py::test_the_month_has_a_budget_that_is_never_exceeded",
    ),
    Mutant(
        "starts are not counted",
        USAGE,
        'counted = {("starts", day_of(_begun(run, now))): 1}',
        'counted = {("starts", day_of(_begun(run, now))): 0}',
        "tests/test_guards.py::test_the_day_has_a_limit_of_starts",
    ),
    Mutant(
        "runs are not booked",
        USAGE,
        '{("spent", month): cost for month',
        '{("spent", month): 0 * cost for month',
        "tests/test_guards.py::test_the_month_has_a_budget_that_is_never_exceeded",
    ),
    Mutant(
        "no limit of messages a day",
        GUARDS,
        'settings.daily_messages - usage_at(usage, now)["messages"]',
        "9999",
        "tests/test_guards.py::test_the_day_has_a_limit_of_messages_even_for_those_who_come_at_once",
    ),
    Mutant(
        "messages are not counted",
        GUARDS,
        'used["messages"] + messages',
        'used["messages"]',
        "tests/test_guards.py::test_the_day_has_a_limit_of_messages_even_for_those_who_come_at_once",
    ),
    Mutant(
        "no cool-down before the write",
        GUARDS,
        "if uses and (wait := uses[-1] + cooldown - now) > 0:",
        "if not (wait := 0.0) and not code:",
        "tests/test_guards.py::test_a_number_waits_out_its_cool_down",
    ),
    Mutant(
        "a number without end",
        GUARDS,
        "if len(recent) >= limit:",
        "if limit < 0:",
        "tests/test_guards.py::test_a_number_gets_so_many_messages_in_any_24_hours_and_no_more",
    ),
    Mutant(
        "full list in a race",
        STATE,
        '"size({path}) < {value}"',
        '"(size({path}) < {value} OR attribute_exists({path}))"',
        "tests/test_model_state.py::test_a_guard_holds_for_two_who_read_the_row_at_once",
    ),
    Mutant(
        "full list before the write",
        STATE,
        "len(row.subscribers) >= places",
        "places < 0",
        "tests/test_model_state.py::test_the_list_is_finite",
    ),
    Mutant(
        "whoever could not be told is not counted",
        STATE,
        '"smsFailed": row.smsFailed + len(row.subscribers)}',
        '"smsFailed": row.smsFailed}',
        "tests/test_lifecycle.py::test_whoever_could_not_be_told_before_the_end_is_counted",
    ),
    Mutant(
        "failed messages in a race",
        STATE,
        ', "smsFailed": ("=", row.smsFailed)}',
        "}",
        "tests/test_model_state.py::test_the_end_waits_for_a_message_that_was_counted_meanwhile",
    ),
    Mutant(
        "sent messages in a race",
        STATE,
        '{"smsSent": ("=", row.smsSent), ',
        "{",
        "tests/test_model_state.py::test_the_end_waits_for_a_message_that_was_counted_meanwhile",
    ),
]
# What a test run needs beside the package.
PARTS = ("sentiment_engine", "lambdas", "tests", "infra_scripts", "pyproject.toml", "settings.ini")


def patched(mutant: Mutant, root: Path = ROOT) -> str:
    "Return the module's source with the mutant in it. Raises ValueError if the patch no longer fits."
    source = (root / "sentiment_engine" / f"{mutant.module}.py").read_text()
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {count} times in {mutant.module}.py, not once")
    changed = source.replace(mutant.old, mutant.new)
    compile(changed, mutant.module, "exec")
    return changed


PATIENCE = {True: 120, False: 900}  # seconds for a named test and for the model: an endless loop is noticed too


def play(mutant: Mutant | None, examples: int, root: Path = ROOT) -> tuple[bool, str, float]:
    "Run the model-based test on a copy of the package. Return whether it passed, what failed, seconds."
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for part in PARTS:
            copy = shutil.copytree if (root / part).is_dir() else shutil.copy
            copy(root / part, Path(folder) / part)
        if mutant:
            (Path(folder) / "sentiment_engine" / f"{mutant.module}.py").write_text(patched(mutant, root))
        env = os.environ | {"MODEL_EXAMPLES": str(examples), "MODEL_NO_SHRINK": "1"}
        env |= {"PYTHONPATH": f"{folder}{os.pathsep}{folder}/tests", "PYTHONDONTWRITEBYTECODE": "1"}
        tests = [mutant.by] if mutant and mutant.by else [MODEL, "-m", "not slow"]
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        begun = time.monotonic()
        limit = PATIENCE[bool(mutant and mutant.by)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(words, cwd=folder, env=env, **pipes) as test:
            try:
                output = test.communicate(timeout=limit)[0]
            except BaseException as stopped:
                for process in [*psutil.Process(test.pid).children(recursive=True), test]:  # its servers too
                    process.kill()
                if not isinstance(stopped, subprocess.TimeoutExpired):
                    raise
                return False, f"the test did not end within {limit} s", limit
    if test.returncode not in (0, 1):
        raise RuntimeError(f"the test could not be run:\n{output[-4000:]}")
    said = re.findall(r"^E\s+(?:\|\s*)?((?:\w+\.)*(?:\w*Error|\w*Exception|Failed|assert)\b.*)$", output, re.M)
    return test.returncode == 0, said[0][:90] if said else "", time.monotonic() - begun


def main() -> int:
    "Run the script."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; may be repeated")
    parser.add_argument("--examples", type=int, default=1000, help="lives played on each of two seeds at most")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - {m.name for m in MUTANTS}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [m for m in MUTANTS if not args.only or m.name in args.only]
    for mutant in chosen:
        patched(mutant)
    passed, said, took = play(None, args.examples)
    print(f"{'(unchanged)':<40} {'passed' if passed else 'FAILED: ' + said} {took:.0f} s", flush=True)
    if not passed:
        return 1
    survivors = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, (passed, said, took) in zip(
            chosen, pool.map(lambda m: play(m, args.examples), chosen), strict=True
        ):
            survivors += passed
            by = (mutant.by or MODEL).removeprefix("tests/")
            print(f"{mutant.name:<42} {'SURVIVED' if passed else said} [{by}] {took:.0f} s", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
