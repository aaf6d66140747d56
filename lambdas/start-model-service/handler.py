"POST /start: win the start of the model or join it."

import os

from sentiment_engine.service.api import post_start, respond
from sentiment_engine.service.lifecycle import engine_from

engine = engine_from(os.environ)


def handler(event, context):
    return respond(engine, event, post_start)
