"""Verified files to a trunk: one loader a file, found by its name, run in a child process."""

NOT_KINDS = frozenset(
    {"child", "cut", "encoder_cut", "encoder_torch", "lora", "manifest", "onnx_graph", "pooling", "probe_texts"}
    | {"probes", "projection", "tail", "tail_manifest", "tail_torch", "torch_file"}
)
"""Modules of this folder that loaders share, which are not loaders."""
