"""What runs on a device: predicts while offline, follows new versions, keeps labelled samples until they are durable.

grpcio, numpy, onnxruntime and zstandard, never torch.
"""

from everlearn_client.edge.model import EdgeModel, EdgeSettings
from everlearn_client.edge.policy import SendPolicy
from everlearn_client.edge.spool import Dropped, Spool, SpoolStats

__all__ = ["Dropped", "EdgeModel", "EdgeSettings", "SendPolicy", "Spool", "SpoolStats"]
