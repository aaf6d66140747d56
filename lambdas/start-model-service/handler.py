"POST /start: win the start of the model or join it. The schedule of the awake hours starts it too."

import os

from sentiment_engine.service.api import post_start, respond
from sentiment_engine.service.lifecycle import begin_hours, engine_from

engine = engine_from(os.environ)


def handler(event, context):
    if "awakeMinutes" in event:  # from the schedule; a visitor's request cannot set this field
        return {"outcome": begin_hours(engine, event["awakeMinutes"])}
    return respond(engine, event, post_start)
