"""Encoder linear layers as two low-rank ones, by the principal components of their outputs.

Outputs of an encoder's linear layers lie near a subspace of far fewer dimensions than they have; a layer that projects onto it and back
computes nearly the same in fewer operations (LiteASR, arXiv 2502.20583, section 3). A checkpoint holds the product of both,
so that it stays a plain transformers one; `encoder_ranks` in its configuration says which layers can be factorized again, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.core.errors import UserError
from workbench.models.whisper.forward.layers import encoder_of
from workbench.models.whisper.forward.passes import encode

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

STEP = 16  # ranks are multiples of it, which suits kernels
# the linear layers of an encoder layer
LINEAR = frozenset({"fc1", "fc2", *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))})
WORTHWHILE = 0.9  # largest share of a layer's operations that its two factors may cost


class LowRank(nn.Module):
    """Two linear layers in place of one. [..., in] -> [..., out]"""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Through the subspace."""
        out: Tensor = self.up(self.down(x))
        return out

    def merged(self) -> Tensor:
        """Weight [out, in] of the equivalent single layer; the bias is `up`'s."""
        return self.up.weight @ self.down.weight


@torch.no_grad()
def factorize(model: WhisperForConditionalGeneration, features: Sequence[Tensor], share: float) -> dict[str, int]:
    """Factorize those linear layers of the encoder that become cheaper.

    Args:
        model: a Whisper; changed in place, and its configuration with it.
        features: features of some clips, each [1, mels, frames].
        share: share of the variance of a layer's outputs to keep, below 1.

    Returns:
        Rank of each factorized layer, by its name within the encoder's layers.

    The share is of the variance, not of its square root; ranks are rounded up. (Our interpretation: LiteASR chooses by accuracy, too.)
    """
    seen = _moments(model, features)
    ranks: dict[str, int] = {}
    for name, (count, total, products) in seen.items():
        linear = _linear(model, name)
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        kept = values.flip(0).clamp(min=0).cumsum(0)
        rank = int((kept < share * kept[-1]).sum()) + 1
        rank = -(-rank // STEP) * STEP
        if rank * (linear.in_features + linear.out_features) > WORTHWHILE * linear.in_features * linear.out_features:
            continue
        basis = vectors.flip(1)[:, :rank].float()  # [out, rank]
        bias = linear.bias
        if bias is not None:
            bias = mean.float() + basis @ (basis.T @ (bias - mean.float()))
        # keys have no bias: one that is the same for all of them would not change the attention
        _replace(model, name, basis.T @ linear.weight, basis, bias)
        ranks[name] = rank
    model.config.encoder_ranks = ranks
    return ranks


@torch.no_grad()
def rebuild_factors(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Factorize again the layers that a checkpoint's configuration names; returns the model."""
    for name, rank in ranks_of(model.config).items():
        linear = _linear(model, name)
        left, values, right = torch.linalg.svd(linear.weight, full_matrices=False)
        root = values[:rank].sqrt()
        _replace(model, name, root[:, None] * right[:rank], left[:, :rank] * root, linear.bias)
    return model


def with_low_rank_layers(
    model: WhisperForConditionalGeneration, config: WhisperConfig
) -> WhisperForConditionalGeneration:
    """Give a model of plain layers the shapes of a configuration's ranks, with values yet to be loaded; returns it."""
    for name, rank in ranks_of(config).items():
        linear = _linear(model, name)
        _put(model, name, LowRank(linear.in_features, rank, linear.out_features, linear.bias is not None))
    return model


def merged_state_dict(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """A model's weights as a plain Whisper has them."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for name in ranks_of(model.config):
        layer, prefix = encoder_of(model).layers.get_submodule(name), f"model.encoder.layers.{name}"
        assert isinstance(layer, LowRank)  # noqa: S101  as the configuration says
        for part in ("down.weight", "up.weight"):
            del state[f"{prefix}.{part}"]
        state[f"{prefix}.weight"] = layer.merged().detach()
        if layer.up.bias is not None:
            state[f"{prefix}.bias"] = state.pop(f"{prefix}.up.bias")
    return state


def ranks_of(config: WhisperConfig | Mapping[str, Any]) -> Mapping[str, int]:
    """Rank of each factorized encoder layer, by its name within the encoder's layers; `config` may be that of a config.json."""
    found = config.get("encoder_ranks") if isinstance(config, Mapping) else getattr(config, "encoder_ranks", None)
    return {str(name): int(rank) for name, rank in (found or {}).items()}


def check_ranks(config: WhisperConfig, where: str) -> None:
    """Raise UserError, which begins with `where`, if `encoder_ranks` names layers or ranks that the encoder does not have."""
    ranks = config.encoder_ranks
    if not isinstance(ranks, dict):
        raise UserError(f"{where}: encoder_ranks is not an object; expected names of encoder layers with their ranks")
    width, inner = config.d_model, config.encoder_ffn_dim
    for name, rank in ranks.items():
        number, _, rest = name.partition(".")
        known = (
            rest in LINEAR
            and number.isdecimal()
            and number == str(int(number[:9]))
            and int(number) < config.encoder_layers
        )
        if not known:
            raise UserError(
                f"{where}: encoder_ranks names {name[:60]!r}, which is not a linear layer of the encoder's {config.encoder_layers} layers"
            )
        most = min(width, inner) if rest.startswith("fc") else width
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= most:
            raise UserError(
                f"{where}: encoder_ranks of {name} is {str(rank)[:60]}; expected a whole number from 1 to {most}"
            )


def _moments(
    model: WhisperForConditionalGeneration, features: Sequence[Tensor]
) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Count, sum [out] and sum of products [out, out] of the outputs of each linear layer of the encoder."""
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}

    def note(name: str, out: Tensor) -> None:
        rows = out.detach().flatten(0, -2).double().cpu()
        count, total, products = seen.get(name, (0, 0.0, 0.0))
        seen[name] = count + len(rows), total + rows.sum(0), products + rows.T @ rows

    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, module in encoder_of(model).layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for given in features:
            encode(model, given.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _linear(model: WhisperForConditionalGeneration, name: str) -> nn.Linear:
    layer = encoder_of(model).layers.get_submodule(name)
    assert isinstance(layer, nn.Linear)  # noqa: S101  it was not taken apart yet
    return layer


def _replace(model: WhisperForConditionalGeneration, name: str, down: Tensor, up: Tensor, bias: Tensor | None) -> None:
    layer = LowRank(down.shape[1], down.shape[0], up.shape[0], bias is not None)
    layer.down.weight.data, layer.up.weight.data = down.contiguous(), up.contiguous()
    if bias is not None:
        layer.up.bias.data = bias.detach().clone()
    _put(model, name, layer)


def _put(model: WhisperForConditionalGeneration, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(encoder_of(model).layers.get_submodule(parent), child, layer.train(model.training))
