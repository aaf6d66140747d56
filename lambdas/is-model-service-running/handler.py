"GET /status, and a clear answer to every address that does not exist."

import os

from sentiment_engine.service.api import get_status_or_nothing, respond
from sentiment_engine.service.lifecycle import engine_from

engine = engine_from(os.environ)


def handler(event, context):
    return respond(engine, event, get_status_or_nothing)
