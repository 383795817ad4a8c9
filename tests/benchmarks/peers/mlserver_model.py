"""MLServer over gRPC: the model; `peers.py` writes its settings beside it."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from _session import WORKERS, features_of, open_session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Lite0(MLModel):
    async def load(self) -> bool:
        self.session, self.pool = open_session(os.environ["PEER_ONNX"]), ThreadPoolExecutor(WORKERS)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pixels = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        loop = asyncio.get_running_loop()
        features = await loop.run_in_executor(self.pool, features_of, self.session, pixels)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", features)])
