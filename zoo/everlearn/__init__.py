"""everlearn: pretrained models that keep learning from labelled streams, without keeping the data.

The data path, top to bottom:

    inputs       bytes -> uint8 images, or pixels, or features     (the last place that sees raw data)
    runtime      pixels -> features, through the trunk that is also shipped
    sums         features -> exact integers n[C], S[C, d], G[d, d]
    memories     what is kept of the features
    heads        sums -> a linear head, in closed form
    metrics      test-then-train accuracy, forgetting
    export       front + trunk + head -> one ONNX file that predicts the same

Around it: `spec` (what a user declares), `hubs` (reference -> verified files), `backbones` (files -> trunk).
This package knows no wire, no database and no environment variables.
"""

__version__ = "0.1.0"
