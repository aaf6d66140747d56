"End a run: the wake-up at its deadline, or POST /sleep of the visitor who started it."

import os

from sentiment_engine.service.api import post_sleep, respond
from sentiment_engine.service.lifecycle import engine_from, shutdown

engine = engine_from(os.environ)


def handler(event, context):
    if "routeKey" in event:
        return respond(engine, event, post_sleep)
    return {"outcome": shutdown(engine, event["runId"])}
