"POST /predict: ask the model."

import os

from sentiment_engine.service.api import post_predict, respond
from sentiment_engine.service.lifecycle import engine_from

engine = engine_from(os.environ)


def handler(event, context):
    return respond(engine, event, post_predict)
