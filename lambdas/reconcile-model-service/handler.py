"Every five minutes: compare what is recorded with what is there, and do what was missed."

import os

from sentiment_engine.service.lifecycle import engine_from, reconcile

engine = engine_from(os.environ)


def handler(event, context):
    return reconcile(engine)
