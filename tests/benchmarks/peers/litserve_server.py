"""LitServe over HTTP (it serves no gRPC): `python litserve_server.py ONNX PORT`."""

import base64
import sys

import litserve
import numpy as np
from _session import WORKERS, features_of, open_session


class Lite0(litserve.LitAPI):
    def setup(self, device) -> None:
        self.session = open_session(sys.argv[1])

    def decode_request(self, request):
        return np.frombuffer(base64.b64decode(request["data"]), "<f4").reshape(1, 3, 224, 224)

    def predict(self, pixels):
        return features_of(self.session, pixels)

    def encode_response(self, features):
        return features.tolist()


if __name__ == "__main__":
    server = litserve.LitServer(Lite0(), accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="warning")
