"""The student as a module whose forward pass is a whole step's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.config.sections import Stage
from workbench.models.protocol import Family, LayerOutputs, Tokens


class StudentModule(nn.Module):
    """The student as one module whose forward is a whole step's, which is what DDP and torch.compile wrap."""

    def __init__(self, model: nn.Module, family: Family, stage: Stage, early_layer: int | None = None) -> None:
        super().__init__()
        self.model, self.family, self.early_layer = model, family, early_layer
        self.encoder_frozen, self.decoding = stage.trainable == "decoder", stage.decoder_losses
        self.checkpointing = stage.activation_checkpointing
        self.layers: list[int] = []  # decoder layers whose outputs are wanted
        self.attention = False  # whether their cross-attention is
        # number of the encoder layer whose states the head reads, too
        self.early_encoder_layer = None if stage.intermediate_ctc is None else stage.intermediate_ctc.layer
        for name, parameter in model.named_parameters():
            part = family.part_of(name)
            parameter.requires_grad_(part != "constant" and stage.trainable in ("all", part))

    def forward(
        self,
        audio: Tensor,
        attention_mask: Tensor,
        inputs: Tensor,
        labels: Tensor,
        labelled: Tensor,
        encoded: bool,
        host: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, LayerOutputs | None]:
        """Encoder states and, if the stage decodes, logits and the outputs of `layers`.

        Args:
            audio: features [utterances, mels, frames], or encoder states [utterances, positions, width].
            attention_mask: which positions an utterance has, bool [utterances, positions].
            inputs: decoder inputs [utterances, tokens].
            labels: labels [utterances, tokens].
            labelled: flat indices of the labelled positions [labels].
            encoded: whether `audio` is encoder states.
            host: clips whose states each transcript is decoded from too [utterances], where clips are mixed.

        Returns:
            States [utterances, positions, width] and logits [labels, vocabulary] or None; where an early layer is taught,
            its logits come after the others, [2 * labels, vocabulary]; so do those from the states of `host`, and those of an early
            encoder layer. Outputs of the layers, or None if none are wanted.
        """
        early = None
        if encoded:
            states = audio
        else:
            with torch.set_grad_enabled(not self.encoder_frozen and torch.is_grad_enabled()):
                states, early = self._encode(audio, attention_mask)
        if not self.decoding:
            return states, None, None
        if host is not None:
            labelled = torch.cat([labelled, labelled + inputs.numel()])
            twice = [torch.cat([each, each[host]]) for each in (states, attention_mask)]
            tokens = Tokens(torch.cat([inputs, inputs]), torch.cat([labels, labels]))
            mixed = self.family.logits(self.model, twice[0], tokens, labelled, twice[1], self.checkpointing)
            return states, mixed, None
        tokens = Tokens(inputs, labels)
        if self.layers and self.early_layer is None:
            logits, layers = self.family.logits_and_layers(
                self.model, states, tokens, self.layers, self.attention, labelled, attention_mask, self.checkpointing
            )
            return states, logits, layers
        logits = self.family.logits(
            self.model, states, tokens, labelled, attention_mask, self.checkpointing, self.early_layer
        )
        if early is not None:
            logits = torch.cat([logits, self.family.logits(self.model, early, tokens, labelled, attention_mask)])
        return states, logits, None

    def _encode(self, features: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder states, and those after the early layer if there is one. -> [utterances, positions, width]"""
        if self.early_encoder_layer is None:
            return self.family.encode(self.model, features, attention_mask, self.checkpointing), None
        return self.family.encode_with_early(
            self.model, features, self.early_encoder_layer, attention_mask, self.checkpointing
        )
