"""Quantization-aware training: a stage's forward and backward passes run with the weights that a bundle will hold.

Before a step's passes each weight is replaced by its rounded value, in place, and restored before the optimizer moves it: the gradient at the
rounded weights is the straight-through estimator's (1308.3432), since rounding is taken as the identity. Parameters keep their names and
identity, so checkpoints, moving average, processes and compiled steps know nothing of it, and layers that are computed again in the
backward pass find the same weights.

In `int8` the inputs of the matrix products are rounded, too, as a bundle's graphs do when they run. Not rounded: what graphs store in fp16
(convolutions, positions, long biases), and the inputs of `w8` and `q4`, which onnxruntime rounds in blocks of 32 to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.config.additions import QuantizationRecipe
from workbench.config.schemes import Scheme
from workbench.core.errors import UserError
from workbench.models.protocol import Family
from workbench.models.quantization import BITS, BLOCK, ExportedWeight, PrecisionPart, rounded, rounded_inputs


@dataclass
class Switch:
    """Whether inputs are rounded now."""

    on: bool = False


class Quantization:
    """What a stage rounds; nothing, where its recipe has no `quantization`."""

    def __init__(self, model: nn.Module, family: Family, settings: QuantizationRecipe | None) -> None:
        """Find the weights, and hook into the modules whose inputs are rounded.

        Args:
            model: the student, its trained parameters marked.
            family: the student's.
            settings: the stage's `quantization`.
        """
        self._model, self._settings = model, settings
        self._weights = [] if settings is None else exported_in(model, family, settings)
        self._parameters = dict(model.named_parameters())
        self._untrained: dict[str, Tensor] = {}  # rounded values of weights that stay as they are
        self._switch = Switch()
        self._handles = self._hooked()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Temporarily give the student the weights that a bundle will hold; not to be nested."""
        if not self._weights:
            yield
            return
        with torch.no_grad():
            # all are rounded before the first is replaced: the tied embedding's scales depend on a norm
            found = {weight.name: self._rounded(weight, scheme) for weight, scheme in self._weights}
            kept = {name: self._parameters[name].detach().clone() for name in found}
            self._fill(found)
        self._switch.on = True
        try:
            yield
        finally:
            self._switch.on = False
            self._fill(kept)

    def close(self) -> None:
        """Take the hooks out of the student."""
        for handle in self._handles:
            handle.remove()

    def _rounded(self, weight: ExportedWeight, scheme: Scheme) -> Tensor:
        if weight.name in self._untrained:
            return self._untrained[weight.name]
        assert self._settings is not None  # noqa: S101  else there are no weights
        parameter, importance, read = self._parameters[weight.name], None, [self._parameters[weight.name]]
        if weight.tied:
            # what is normed has a mean square of one, so the norm's gain and bias say that of each input
            gain, bias = (self._parameters[f"{weight.norm}.{name}"] for name in ("weight", "bias"))
            importance = gain**2 + bias**2
            read += [gain, bias]
        matrix = parameter.flatten(1)  # a convolution over one position has a third axis
        found = rounded(matrix, scheme.name, weight, importance, self._settings.reduce_range).view_as(parameter)
        if not any(one.requires_grad for one in read):
            self._untrained[weight.name] = found
        return found

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    def _hooked(self) -> list[RemovableHandle]:
        """Hooks that round what products in int8 read, while the switch is on."""
        handles, norms = [], {}
        for weight, scheme in self._weights:
            if scheme.name == "int8" and weight.norm is not None:
                norms[weight.norm] = weight.by_row
            elif scheme.name == "int8":
                module = self._model.get_submodule(weight.name.removesuffix(".weight"))
                handles.append(module.register_forward_pre_hook(partial(_round_input, self._switch, weight.by_row)))
        for name, by_row in norms.items():
            module = self._model.get_submodule(name)
            handles.append(module.register_forward_hook(partial(_round_output, self._switch, by_row)))
        return handles


def exported_in(model: nn.Module, family: Family, settings: QuantizationRecipe) -> list[tuple[ExportedWeight, Scheme]]:
    """The weights that the schemes round, each with its own.

    Raises:
        UserError: a part is not exported, lacks a layer that is to stay in fp32, or is too narrow for the scheme.
    """
    found: list[tuple[ExportedWeight, Scheme]] = []
    shapes = dict(model.named_parameters())
    schemes: dict[PrecisionPart, Scheme | None] = {
        "encoder": settings.encoder_scheme,
        "decoder": settings.decoder_scheme,
    }
    for part, scheme in schemes.items():
        if scheme is None:
            continue
        weights = family.exported_weights(model, part)
        if missing := sorted(set(scheme.kept) - {weight.layer for weight in weights}):
            raise UserError(f"{part} is {scheme.label!r}, but there is no layer {missing[0]}; they are numbered from 0")
        if scheme.name == "int8" and any(weight.inside for weight in weights):
            raise UserError(
                f"{part} is {scheme.label!r}, but the inputs of this model's attention cannot be rounded in training; expected w8 or q4"
            )
        width = next((shapes[weight.name].shape[1] for weight in weights if weight.tied), BLOCK)
        if scheme.name in BITS and width % BLOCK:
            raise UserError(
                f"{part} is {scheme.label!r}, but the student's width is {width}; w8 and q4 need a multiple of {BLOCK}"
            )
        found += [(weight, scheme) for weight in weights if weight.layer is None or weight.layer not in scheme.kept]
    return found


def check_quantization(settings: QuantizationRecipe, stage: str, family: Family, model: nn.Module) -> None:
    """Raise UserError, which begins with the key, for what `exported_in` refuses."""
    try:
        exported_in(model, family, settings)
    except UserError as error:
        raise UserError(f"stages.{stage}.quantization: {error}") from None


def _round_input(
    switch: Switch, by_row: bool, _module: nn.Module, given: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    return (_through(given[0], by_row), *given[1:]) if switch.on else None


def _round_output(
    switch: Switch, by_row: bool, _module: nn.Module, _given: Sequence[Tensor], out: Tensor
) -> Tensor | None:
    return _through(out, by_row) if switch.on else None


def _through(values: Tensor, by_row: bool) -> Tensor:
    """Values rounded, with the gradient passed straight through."""
    with torch.no_grad():
        found = rounded_inputs(values, by_row)
    return found + (values - values.detach()) if values.requires_grad else found
