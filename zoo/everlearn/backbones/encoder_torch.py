"""A text encoder as a torch module: made from numbers alone, masked by its padding, pooled to one vector.

Axes: N texts, L tokens, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from torch import nn

from everlearn.backbones.pooling import Pooling
from everlearn.errors import BackboneError

KINDS: Final = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "mpnet": (transformers.MPNetConfig, transformers.MPNetModel),
}


class Attended(nn.Module):  # type: ignore[misc]  # torch's types are skipped, see pyproject
    """An encoder with a mask made from the ids: rows are filled up with the encoder's padding, or with -1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._padding = int(encoder.config.pad_token_id)
        self._flat_mask = encoder.config.model_type == "mpnet"

    def forward(self, input_ids_NL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden values [N, L, width], and 1 where there is a token [N, L]."""
        there_NL = (input_ids_NL >= 0) & (input_ids_NL != self._padding)
        ids_NL = torch.where(there_NL, input_ids_NL, torch.full_like(input_ids_NL, self._padding))
        weight_NL = there_NL.to(torch.float32)
        # MPNet alone makes scores of a mask by itself.
        mask = weight_NL if self._flat_mask else bias_of(weight_NL)
        return self.encoder(input_ids=ids_NL, attention_mask=mask).last_hidden_state, weight_NL


class Pooled(Attended):
    """`input_ids` [N, L] -> features [N, d]."""

    def __init__(self, encoder: nn.Module, pooling: Pooling) -> None:
        super().__init__(encoder)
        self.pooling = pooling

    def forward(self, input_ids_NL: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return pool(*super().forward(input_ids_NL), self.pooling)


def bias_of(weight_NL: torch.Tensor) -> torch.Tensor:
    """What is added to attention scores, [N, 1, 1, L]: nothing at a token, and the least number elsewhere."""
    return (1 - weight_NL)[:, None, None, :] * torch.finfo(torch.float32).min


def pool(hidden_NLd: torch.Tensor, weight_NL: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector a text, [N, d]."""
    if pooling.kind == "cls":
        pooled_Nd = hidden_NLd[:, 0]
    else:
        count_N1 = weight_NL.sum(1, keepdim=True).clamp(min=1)
        pooled_Nd = (hidden_NLd * weight_NL[:, :, None]).sum(1) / count_N1
    return torch.nn.functional.normalize(pooled_Nd, dim=1) if pooling.normalise else pooled_Nd


def config_of(kind: str, numbers: Mapping[str, Any]) -> Any:
    """The library's configuration of an encoder. Raises BackboneError for numbers that make none."""
    try:
        # Eager attention takes a mask as it is; the others choose by what the device offers.
        return KINDS[kind][0](**numbers, attn_implementation="eager")
    # Configurations raise whatever a wrong number leads them into.
    except Exception as error:
        raise BackboneError(f"config.json makes no {kind}: {str(error)[:200]}") from error


def encoder_of(config: Any) -> nn.Module:
    """The encoder with random weights and without its heads. Raises BackboneError."""
    arguments = {} if config.model_type == "distilbert" else {"add_pooling_layer": False}
    try:
        encoder: nn.Module = KINDS[config.model_type][1](config, **arguments)
    # Constructors raise whatever a wrong number leads them into.
    except Exception as error:
        raise BackboneError(f"config.json makes no {config.model_type}: {str(error)[:200]}") from error
    return encoder.eval()
