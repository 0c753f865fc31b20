"""How bundles decode clips in a measurement: greedily by default; with beams, or for models with a CTC head with a language model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from export.edge import BundleError, LanguageModel, LanguageModelWeights, Recognizer
from export.edge.bundle.manifest import Manifest
from export.edge.bundle.tokens import Detokenizer
from export.edge.recognizer import DECODER_BEAMS
from workbench.core.errors import UserError
from workbench.core.hashing import sha256


class DecodingDescription(TypedDict):
    """The same in a report."""

    beams: int
    lm: str | None  # name of the file
    lm_sha256: str | None
    lm_weights: dict[str, float] | None


@dataclass(frozen=True)
class Decoding:
    """What differs from greedy decoding."""

    beams: int = 1  # of every bundle; the teacher decodes greedily
    lm: Path | None = None  # n-gram language model, of the bundles with a CTC head
    lm_weights: LanguageModelWeights = field(default_factory=LanguageModelWeights)

    @property
    def is_greedy(self) -> bool:
        """Whether it is what a runtime does by default."""
        return self == GREEDY

    def opened(self, recognizer: Recognizer) -> LanguageModel | None:
        """The language model for this bundle; None for those with a decoder. Raises BundleError."""
        return recognizer.new_language_model(self.lm, self.lm_weights) if self.lm and recognizer.ctc else None

    def check(self, manifests: Sequence[Manifest]) -> None:
        """Raise UserError, before anything is measured, for too many beams, or a language model that no bundle takes or that cannot be read."""
        if self.beams > DECODER_BEAMS and not all(manifest.has_ctc_head for manifest in manifests):
            raise UserError(f"--beams {self.beams}: expected at most {DECODER_BEAMS} for a model with a decoder")
        if self.lm is None:
            return
        taking = [manifest for manifest in manifests if manifest.has_ctc_head]
        if not taking:
            raise UserError(
                "--lm: none of the bundles has a CTC head, and models with a decoder take no language model"
            )
        try:
            for manifest in taking:  # its tokens are enough: no graph is loaded
                lower = bool(manifest.content["ctc"].get("lower"))
                LanguageModel(self.lm, Detokenizer(manifest.path(manifest.vocabulary)), lower, self.lm_weights)
        except BundleError as error:
            raise UserError(str(error)) from None

    def described(self) -> DecodingDescription:
        """What a report says of it, without the file's folder."""
        return {
            "beams": self.beams,
            "lm": self.lm.name if self.lm else None,
            "lm_sha256": sha256(self.lm) if self.lm else None,
            "lm_weights": asdict(self.lm_weights) if self.lm else None,
        }

    def command(self) -> str:
        """Options of `workbench measure` that give it, with a space before; nothing for greedy decoding."""
        words = ["--beams", str(self.beams)] if self.beams > 1 else []
        if self.lm:
            words += ["--lm", str(self.lm)]
            for name, value in asdict(self.lm_weights).items():
                words += [f"--lm-{name.replace('_', '-')}", str(value)]
        return "".join(f" {shlex.quote(word)}" for word in words)


GREEDY = Decoding()
