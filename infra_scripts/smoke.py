"""Simulate one visit over HTTP against the local cloud, and print each step with its time.

The visit asks the small model, starts the large one, waits for it and its SMS, asks it, keeps it alive, lets it fall
asleep, checks that nothing left over costs money, and asks the small model again. A model that needs no start is only
asked. The visit uses the running cloud, or starts one and stops it afterwards. It does not wait half an hour for the
idle timeout: it moves the local cloud's clock forward.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import boto3
import httpx

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.phases import (
    FAILURES,
    add_options,
    add_ports,
    chosen_parameters,
    deploy,
    explain_failure,
    local_cloud,
    stop_on_signals,
)
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.deploy.target import add_endpoint_options, chosen_endpoint
from sentiment_engine.deploy.visit import (
    LiveVisit,
    StepFailed,
    ask_asleep,
    ask_standing,
    end_visit,
    local_visit,
    sleep,
    use,
    wake,
)
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import engine_stack, settings_from, site_stack


def deployed_api(cloud: LocalCloud, options: argparse.Namespace) -> str:
    "Return the API's address. Deploys the engine first, unless it is deployed at this cloud's address as wanted."
    cloudformation, settings = boto3.client("cloudformation"), settings_from(os.environ)
    outputs: dict[str, str] = {}
    with suppress(LookupError):  # nothing deployed yet
        for stack in (site_stack, engine_stack):
            outputs |= stack_outputs(cloudformation, stack(settings))
    deployed = "Table" in outputs and outputs.get("ApiUrl", "").startswith(f"{cloud.url}/")
    if options.endpoint or options.standby or not deployed:
        outputs = deploy("local", **chosen_parameters(options))
    return outputs["ApiUrl"]


@tells_cause
def main():
    parser = Parser(description=__doc__)
    add_options(parser)
    add_endpoint_options(parser)
    add_ports(parser)
    options = parser.parse_args()
    stop_on_signals()
    try:
        os.environ.update(chosen_endpoint(options))
        with local_cloud(ports=options) as cloud:
            visit = local_visit(cloud, deployed_api(cloud, options))
            asleep = partial(sleep, sagemaker=boto3.client("sagemaker"), prefix=settings_from(os.environ).prefix)
            standing = visit.call("GET", "/status")[1].get("endpoint") in ("serverless", "lambda")
            try:
                acts: list[Callable[[LiveVisit], None]] = [ask_asleep, wake, use, asleep]
                for act in [ask_standing] if standing else acts:
                    act(visit)
            except StepFailed as e:
                sys.exit(f"smoke: {e}; the local cloud's log is {cloud.log}")
            finally:
                end_visit(visit)
            print(f"smoke: {visit.step_number} passed, 0 failed")
    except (*FAILURES, httpx.HTTPError) as e:
        sys.exit(f"smoke: {explain_failure(e)}")
    except KeyboardInterrupt:
        sys.exit("\nsmoke: interrupted")


if __name__ == "__main__":
    main()
