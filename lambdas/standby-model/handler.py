"Classify reviews with the small model. invoke-sagemaker-endpoint calls it while no endpoint answers."

import json
import os
from pathlib import Path

from sentiment_engine.model import inference

memory = int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0))  # MB; AWS gives one processor for every 1769
os.environ.setdefault("INFERENCE_THREADS", str(max(1, memory // 1769)))

folder = Path(__file__).with_name("model")
model, version = inference.model_fn(folder), (folder / "VERSION").read_text(encoding="utf-8")  # before the first event


def handler(event, context):
    try:
        return {
            "predictions": inference.predict_fn(inference.input_fn(json.dumps(event)), model),
            "modelVersion": version,
        }
    except inference.InputError as e:
        return {"error": {"code": e.code, "message": e.message, "status": e.status}}
