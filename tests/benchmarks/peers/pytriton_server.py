"""PyTriton (the Triton that NVIDIA's wheel brings) over gRPC: `python pytriton_server.py ONNX PORT HTTP_PORT`."""

import sys

import numpy as np
from _session import WORKERS, features_of, open_session
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def instance(path: str):
    session = open_session(path)

    @batch
    def infer(pixels):
        return {"scores": features_of(session, pixels)}

    return infer


if __name__ == "__main__":
    path, port, http_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = TritonConfig(grpc_port=port, http_port=http_port, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="lite0",
            infer_func=[instance(path) for _ in range(WORKERS)],
            inputs=[Tensor(name="pixels", dtype=np.float32, shape=(3, 224, 224))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
        )
        triton.serve()
