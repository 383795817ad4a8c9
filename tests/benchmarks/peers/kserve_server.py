"""KServe's Python SDK over gRPC: `python kserve_server.py ONNX PORT HTTP_PORT`."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from _session import WORKERS, features_of, open_session
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Lite0(Model):
    def __init__(self, path: str) -> None:
        super().__init__("lite0")
        self.session, self.pool = open_session(path), ThreadPoolExecutor(WORKERS)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        pixels = payload.inputs[0].as_numpy()
        loop = asyncio.get_running_loop()
        features = await loop.run_in_executor(self.pool, features_of, self.session, pixels)
        output = InferOutput("scores", list(features.shape), "FP32")
        output.set_data_from_numpy(features, binary_data=True)
        return InferResponse(response_id=payload.id or "", model_name="lite0", infer_outputs=[output])


if __name__ == "__main__":
    path, port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ModelServer(http_port=http_port, grpc_port=port, enable_grpc=True, workers=1).start([Lite0(path)])
