"""BentoML over HTTP (it serves no gRPC): `bentoml serve bentoml_server:Lite0 --port PORT`."""

import base64
import os

import bentoml
import numpy as np
from _session import WORKERS, features_of, open_session


@bentoml.service(workers=WORKERS, traffic={"timeout": 120})
class Lite0:
    def __init__(self) -> None:
        self.session = open_session(os.environ["PEER_ONNX"])

    @bentoml.api
    def predict(self, data: str) -> list:
        pixels = np.frombuffer(base64.b64decode(data), "<f4").reshape(1, 3, 224, 224)
        return features_of(self.session, pixels).tolist()
