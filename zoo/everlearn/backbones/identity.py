"""No network at all: the values themselves, flattened, each brought from its declared range to [-1, 1].

For sensor vectors, tables and short time series, where classes are nearly linear in the values; random features behind
it (`spec.projection`) make them so where they are not. Needs no file and no torch.

Axes: N samples, d values of one.
"""

from __future__ import annotations

from everlearn.backbones._scaled import scaled_graph
from everlearn.backbones.base import BackboneDefaults, Loader, provenance_of
from everlearn.backbones.probes import DECLARED_HEADROOM, finish
from everlearn.errors import BackboneError
from everlearn.spec.model import Backbone
from everlearn.values import BackboneFiles, Front, TensorFront, Trunk


class IdentityLoader(Loader):
    """`tensor` [N, *shape] -> (tensor - middle) / half range, flattened: `features` [N, d]."""

    def describe(self, backbone: Backbone, files: BackboneFiles | None) -> BackboneDefaults:
        """It takes tensors, of whatever shape the declaration says."""
        return BackboneDefaults(modality="tensor", architecture=None, feature_dim=None, licence=None)

    def build(self, backbone: Backbone, files: BackboneFiles, front: Front, *, bits: int) -> Trunk:
        """See the base class. The parity is 0: there is no source model."""
        if not isinstance(front, TensorFront):
            raise BackboneError("the identity takes tensors; write modality: tensor", field="spec.input.modality")
        if files.source != "identity" or files.paths:
            raise BackboneError(
                "the identity has no files; write source: identity, and nothing else", field="spec.backbone.source"
            )
        graph = scaled_graph(front).SerializeToString(deterministic=True)
        provenance = provenance_of(backbone, files) | {"licence": "none"}
        return finish(graph, front, bits, provenance, headroom=DECLARED_HEADROOM)
