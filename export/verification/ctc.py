"""A CTC bundle's graph against torch: its logits at several lengths and batch sizes, and the transcripts of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.edge import read_wav
from export.edge.bundle.manifest import read_manifest
from export.verification.agreement import ReferenceTranscript
from export.verification.clients.protocol import ClipFile
from export.verification.parity import TOLERANCE, noise_bursts, not_comparable, relative_difference
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.core.errors import UserError
from workbench.core.progress import Progress
from workbench.models import Family, open_family
from workbench.models.ctc.family import CtcFamily
from workbench.models.ctc.tokens import collapse
from workbench.models.states import encode_waves

SHAPES = ((1, 0.02), (1, 0.3), (8, 3.0), (1, 7.0), (3, 9.5), (1, 30.0))  # (clips, seconds)


def check_logits(
    folder: Path, model: nn.Module, family: Family, precisions: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compare every precision's logits with torch's, for speech-like noise that is the same in every run.

    Args:
        folder: the bundle.
        model: the torch model that was exported.
        family: its features and tokens.
        precisions: which to compare; fp32 must agree, others are only reported.

    Returns:
        For each precision the largest difference of the logits, relative to their largest value.

    Raises:
        UserError: the fp32 graph differs from torch by more than rounding, or any gives values that are not finite.
    """
    import onnxruntime as ort

    manifest = read_manifest(folder)
    generator = np.random.default_rng(0)
    scenes = [noise_bursts(generator, clips, seconds) for clips, seconds in SHAPES]
    scenes.append(np.zeros((1, SAMPLE_RATE), np.float32))  # the logarithm of nothing is where precisions fail first
    expected = [torch_logits(model, family, waves) for waves in scenes]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    found: dict[str, dict[str, float]] = {}
    for precision in precisions:
        graph = str(manifest.graph("ctc", precision))
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        differences = [
            relative_difference(np.asarray(session.run(["logits"], {"input_values": waves})[0]), theirs)
            for waves, theirs in zip(scenes, expected, strict=True)
        ]
        if not np.isfinite(differences).all():
            raise UserError(not_comparable(folder, "logits", precision))
        worst = int(np.argmax(differences))
        if precision == "fp32" and differences[worst] > TOLERANCE:
            clips, samples = scenes[worst].shape
            raise UserError(
                f"{folder}: logits of the fp32 graph differ from torch by {differences[worst]:.1e} of the largest value for {clips} clips of "
                f"{samples / SAMPLE_RATE:g} s; expected at most {TOLERANCE:.0e}; please report this checkpoint"
            )
        found[precision] = {"logits": float(f"{differences[worst]:.2e}")}
    return found


def ctc_reference(checkpoint: Path, clips: Sequence[ClipFile]) -> list[ReferenceTranscript]:
    """Torch's transcript of each clip, alone as the clients transcribe it."""
    family = open_family(checkpoint)
    if not isinstance(family, CtcFamily):
        raise UserError(f"{checkpoint}: has no CTC head, but the bundle's model has one")
    model, blank, out = family.load(), family.ctc_tokens.blank, []
    with Progress("torch's reference", len(clips)) as progress:
        for clip in clips:
            progress.advance()
            wave = read_wav(clip["wav"])  # the same samples that the clients get
            best = torch.from_numpy(torch_logits(model, family, wave[None])[0]).argmax(-1)
            ids = collapse(best, blank)
            out.append(ReferenceTranscript(family.ctc_tokens.decode(ids), ids, False, family.ctc_tokens.decode))
    return out


@torch.no_grad()
def torch_logits(model: nn.Module, family: Family, waves: Wave) -> Wave:
    """Logits of clips of one length, [clips, samples]. -> [clips, positions, vocabulary]"""
    rows = list(waves)
    states, _ = encode_waves(family, model, rows, family.input_seconds(rows), torch.device("cpu"))
    logits: Wave = family.project(model, states).numpy()
    return logits
