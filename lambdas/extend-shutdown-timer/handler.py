"POST /extend: keep the model awake."

import os

from sentiment_engine.service.api import post_extend, respond
from sentiment_engine.service.lifecycle import engine_from

engine = engine_from(os.environ)


def handler(event, context):
    return respond(engine, event, post_extend)
