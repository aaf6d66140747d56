"""Hugging Face's inference toolkit as handlers of an artifact: a transformers pipeline, one request at a time.

As code/inference.py of an artifact, it runs behind our web server.
"""

import json
import os
import threading

ONE_AT_A_TIME = threading.Lock()  # like each worker of the toolkit


def load_pipeline(folder: str):
    "Load the pipeline in 32 bits, with one thread per core."
    import torch
    from transformers import pipeline

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", dtype=torch.float32)


def model_fn(model_dir):
    return load_pipeline(model_dir)


def input_fn(body, content_type):
    return json.loads(body)


def predict_fn(data, pipe):
    "Call the pipeline with the request's inputs and parameters, like the toolkit."
    with ONE_AT_A_TIME:
        return pipe(data["inputs"], truncation=True, **data.get("parameters", {}))


def output_fn(answer, accept):
    return json.dumps(answer)
