"""The pipeline behind LitServe, with batching. Usage: litserve_server.py MODEL_DIR PORT"""

import sys

import litserve
from stock import load_pipeline

BATCH, WAIT = 16, 0.01  # requests, seconds


class Sentiment(litserve.LitAPI):
    def setup(self, device):
        self.pipe = load_pipeline(sys.argv[1])

    def decode_request(self, request):
        return request["inputs"]

    def batch(self, inputs):
        return list(inputs)

    def unbatch(self, output):
        return list(output)

    def predict(self, texts):
        return self.pipe(texts, truncation=True, batch_size=len(texts))

    def encode_response(self, output):
        return [output]


if __name__ == "__main__":
    api = Sentiment(max_batch_size=BATCH, batch_timeout=WAIT, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
