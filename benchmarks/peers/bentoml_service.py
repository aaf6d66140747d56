"""The pipeline behind BentoML, with adaptive batching. MODEL_DIR names the model's folder."""

import os

import bentoml
from stock import load_pipeline


@bentoml.service(traffic={"timeout": 120})
class Sentiment:
    def __init__(self):
        self.pipe = load_pipeline(os.environ["MODEL_DIR"])

    @bentoml.api(batchable=True, route="/invocations")
    def classify(self, inputs: list[str]) -> list[dict]:
        return self.pipe(inputs, truncation=True, batch_size=len(inputs))
