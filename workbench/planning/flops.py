"""Operations and memory of a step and of the teacher's pass, counted while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from workbench.config.recipe import Recipe
from workbench.config.sections import Stage
from workbench.core.autograd import Context
from workbench.losses.token_losses import token_losses
from workbench.models.protocol import IGNORE_INDEX, Tokens
from workbench.models.whisper.family import WINDOW_SECONDS
from workbench.models.whisper.forward.passes import decoder_logits, encode
from workbench.planning.models import TOKENS_A_SECOND, PlannedModel
from workbench.training.step.student_module import StudentModule

AUTOCAST_OVERHEAD = 1.3  # norms, softmax and residuals stay fp32 under bf16 autocast: our estimate


class _Attention(torch.autograd.Function):
    """Attention as a fused kernel costs it: the scores are not kept but computed again in the backward pass.

    On the meta device and on the CPU torch takes other forms, which keep other things. The gradient of a mask is left out: a Parakeet's
    relative positions come as one, and cost a few percent of its layers' operations.
    """

    @staticmethod
    def forward(ctx: Context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query @ key.transpose(-1, -2) @ value
        ctx.save_for_backward(query, key, value, out, query[..., 0].float())  # the last stands for the row sums
        return out

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        scores = query @ key.transpose(-1, -2)
        of_scores = gradient @ value.transpose(-1, -2)
        return of_scores @ key, of_scores.transpose(-1, -2) @ query, scores.transpose(-1, -2) @ gradient


@contextmanager
def _fused_attention() -> Iterator[None]:
    def attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out

    functional, original = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def flop_counter() -> FlopCounterMode:
    """A counter for which the two gradients of a convolution cost as much as the convolution each, whatever its groups.

    torch's own takes the weights' gradient of a convolution in groups for that of a whole one.
    """

    def backward(
        gradient: list[int], given: list[int], weight: list[int], _bias: object, _stride: object, _padding: object, _dilation: object,
        transposed: bool, _output_padding: object, _groups: object, wanted: list[bool], **_: object,
    ) -> int:  # fmt: skip
        once = conv_flop_count(given, weight, gradient, transposed=transposed)
        return once * sum(wanted[:2])

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward})


def step_cost(
    planned: PlannedModel, student: StudentModule, stage: Stage, recipe: Recipe, seconds: float, clips: int
) -> tuple[int, int]:
    """Bytes kept for the backward pass, and operations of forward and backward, for that many clips."""
    frozen = student.encoder_frozen and stage.cache_encoder_states and not stage.encoder_matching
    frozen = frozen and not recipe.augment.changes_hearing  # as in distill.datasets
    given = planned.inputs(clips, seconds, frozen)
    counter = flop_counter()
    with _fused_attention(), counter, saved_bytes(student.model) as saved:
        states, logits, _ = student(
            given.audio, given.attention_mask, given.inputs, given.labels, given.labelled, frozen
        )
        loss = stage.encoder_matching * states.square().mean()
        if logits is not None:
            # a CTC head's losses keep as much as these: two values for each token of each prediction
            labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            top = torch.zeros(len(logits), min(recipe.targets.top_k, logits.shape[1]), device=logits.device)
            task, divergence = token_losses(logits, labels, top.long(), top, top[:, 0], recipe.targets.temperature)
            loss = loss + task.sum() + divergence.sum()
        loss.backward()
    student.zero_grad(set_to_none=True)
    vocabulary = 0 if logits is None else logits.numel() * 4  # the logits' gradient, alive while the rest still is
    total = saved[0] + vocabulary
    if recipe.precision == "bf16":
        total = round(total / 2 * AUTOCAST_OVERHEAD)
    return total, counter.get_total_flops()


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes that autograd saves inside, each storage once, the parameters left out."""
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: list[Tensor] = []  # kept alive, so that no storage's number is reused
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(tensor)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


@torch.no_grad()
def teacher_pass_flop(teacher: PlannedModel, clip_seconds: float) -> int:
    """Operations of the teacher's pass over one clip: a Whisper's at 30 s, with a CTC head at the clip's length and the silence that it was trained with."""
    if teacher.ctc:
        given = teacher.inputs(1, min(clip_seconds + teacher.family.silence, WINDOW_SECONDS))
        counter = flop_counter()
        with _fused_attention(), counter:
            states = teacher.family.encode(teacher.model, given.audio, given.attention_mask)
            teacher.family.logits(teacher.model, states, Tokens(given.inputs, given.labels), given.labelled)
        return int(counter.get_total_flops())
    tokens = max(1, round(TOKENS_A_SECOND * clip_seconds))
    with torch.device("meta"):
        features = torch.zeros(1, teacher.model.config.num_mel_bins, round(WINDOW_SECONDS * 100))
        inputs = torch.zeros(1, tokens + 4, dtype=torch.int64)
        labels = torch.full((1, tokens + 4), IGNORE_INDEX)
        labelled = torch.zeros(tokens, dtype=torch.int64)
    counter = flop_counter()
    with counter:
        decoder_logits(teacher.model, encode(teacher.model, features), Tokens(inputs, labels), labelled)
    return int(counter.get_total_flops())
