"Every five minutes: compare the recorded state with the actual one, and make up for missed steps."

import os

from sentiment_engine.service.lifecycle import engine_from, reconcile

engine = engine_from(os.environ)


def handler(event, context):
    return reconcile(engine)
