"""ONNX Runtime sessions and the process they run in; no torch."""
