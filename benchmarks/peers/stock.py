"""What Hugging Face's inference toolkit does, as handlers of an artifact: a transformers pipeline, a request at a time.

Copied into an artifact as code/inference.py, it is served by the same web server as ours.
"""

import json
import os
import threading

ONE_AT_A_TIME = threading.Lock()  # as each worker of the toolkit


def load_pipeline(folder: str):
    "Load the pipeline in 32 bits, with as many threads as there are cores."
    import torch
    from transformers import pipeline

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", dtype=torch.float32)


def model_fn(model_dir):
    return load_pipeline(model_dir)


def input_fn(body, content_type):
    return json.loads(body)


def predict_fn(data, pipe):
    "Call the pipeline with the request's inputs and, as the toolkit does, its parameters."
    with ONE_AT_A_TIME:
        return pipe(data["inputs"], truncation=True, **data.get("parameters", {}))


def output_fn(answer, accept):
    return json.dumps(answer)
