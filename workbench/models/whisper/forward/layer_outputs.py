"""What some decoder layers compute while the decoder runs: their hidden states, and where their cross-attention attends.

The fused attention of a pass does not keep its distribution, so it is computed again here, at the labelled positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from workbench.models.protocol import LayerOutputs
from workbench.models.whisper.forward.layers import DecoderAttention, DecoderLayer


class LayerTap:
    """Collects the outputs of some layers of one decoder pass.

    Args:
        layers: numbers of the layers, in the order of the result.
        attention: whether to collect what their cross-attention is computed from.
    """

    def __init__(self, layers: Sequence[int], attention: bool) -> None:
        self.layers, self.attention = list(layers), attention
        self._hidden: dict[int, Tensor] = {}  # [labels, width]
        self._query_inputs: dict[int, Tensor] = {}  # [labels, width]: input of the cross-attention's queries

    def run(self, number: int, layer: DecoderLayer, call: Callable[[], Tensor], places: Tensor) -> Tensor:
        """Run a layer and keep what is wanted of it.

        Args:
            number: number of the layer.
            layer: the layer.
            call: runs it and returns [..., width].
            places: rows of the flattened result that have a label [labels].
        """

        def keep(_module: nn.Module, _given: object, normed: Tensor) -> None:
            self._query_inputs[number] = _at(normed, places)

        handle = layer.encoder_attn_layer_norm.register_forward_hook(keep) if self.attention else None
        try:
            rows = call()
        finally:
            if handle is not None:
                handle.remove()
        self._hidden[number] = _at(rows, places)
        return rows

    def outputs(
        self,
        layers: Sequence[DecoderLayer],
        states: Tensor,
        attention_mask: Tensor | None,
        labelled: Tensor,
        tokens: int,
    ) -> LayerOutputs:
        """The result, after the pass.

        Args:
            layers: all layers of the decoder.
            states: encoder states [utterances, positions, width].
            attention_mask: which of them an utterance has, bool [utterances, positions].
            labelled: flat indices of the labelled positions in [utterances * tokens].
            tokens: length of the padded inputs.
        """
        attended = [
            cross_attention(layers[n].encoder_attn, self._query_inputs[n], states, attention_mask, labelled, tokens)
            for n in self.layers
            if self.attention
        ]
        hidden = torch.stack([self._hidden[n] for n in self.layers])
        return LayerOutputs(hidden, torch.stack(attended) if attended else hidden.new_empty(0))


def cross_attention(
    attention: DecoderAttention,
    normed: Tensor,
    states: Tensor,
    attention_mask: Tensor | None,
    labelled: Tensor,
    tokens: int,
) -> Tensor:
    """Logarithms of a layer's attention to the encoder states; -inf where an utterance has none.

    Args:
        attention: the layer's cross-attention.
        normed: its input at the labelled positions [labels, width].
        states: encoder states [utterances, positions, width].
        attention_mask: which of them an utterance has, bool [utterances, positions]; all by default.
        labelled: flat indices of the labelled positions in [utterances * tokens].
        tokens: length of the padded inputs.

    Returns:
        fp32 [labels, heads, positions].
    """
    clips, heads, width = len(states), attention.num_heads, attention.head_dim
    query = attention.q_proj(normed) * attention.scaling
    padded = query.new_zeros(clips * tokens, heads * width).index_copy(0, labelled, query)
    key = attention.k_proj(states).view(clips, -1, heads, width).permute(0, 2, 3, 1)
    scores = padded.view(clips, tokens, heads, width).transpose(1, 2) @ key  # [clips, heads, tokens, positions]
    rows = scores.transpose(1, 2).flatten(0, 1).index_select(0, labelled).float()  # [labels, heads, positions]
    if attention_mask is not None:
        rows = rows.masked_fill(~attention_mask[labelled // tokens][:, None], -torch.inf)
    shares: Tensor = rows.log_softmax(-1)
    return shares


def _at(rows: Tensor, places: Tensor) -> Tensor:
    """[..., width] -> [places, width]"""
    return rows.flatten(0, -2).index_select(0, places)
