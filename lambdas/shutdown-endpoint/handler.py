"The wake-up of a run: delete its endpoint if the deadline has passed, or schedule the next wake-up."

import os

from sentiment_engine.service.lifecycle import engine_from, shutdown

engine = engine_from(os.environ)


def handler(event, context):
    return {"outcome": shutdown(engine, event["runId"])}
