"An endpoint has changed its state: test it, open the model, schedule the wake-up and notify subscribers; or clean up."

import os

from sentiment_engine.service.lifecycle import engine_from, on_endpoint_state_change

engine = engine_from(os.environ)


def handler(event, context):
    return {"outcome": on_endpoint_state_change(engine, event)}
