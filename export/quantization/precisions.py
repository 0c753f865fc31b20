"""Precisions by name: `int8`, `fp32/int8` (encoder/decoder), `int8-0-5/q4` (the encoder's layers 0 and 5 stay fp32)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.config.schemes import SUFFIXES, Scheme, parse_scheme
from workbench.core.errors import UserError

ENCODER_ONLY = ("int8_static",)  # the decoder's caches would need calibrated ranges of their own


@dataclass(frozen=True)
class Precision:
    """A scheme for the encoder's graph and one for the decoders' graphs."""

    encoder: Scheme
    decoder: Scheme

    @property
    def name(self) -> str:
        """The shortest name that parses to this precision."""
        both = self.encoder.label, self.decoder.label
        return both[0] if both[0] == both[1] else "/".join(both)


def parse_precision(text: str) -> Precision:
    """Parse a precision's name; raises UserError if it is unknown."""
    parts = text.strip().split("/")
    if len(parts) > 2:
        raise UserError(f"--precision {text!r}: expected one scheme, or two as encoder/decoder")
    schemes = [_scheme(part, text) for part in parts]
    found = Precision(schemes[0], schemes[-1])
    if len(schemes) > 1:
        check_decoder_scheme(found)
    return found


def check_decoder_scheme(precision: Precision) -> None:
    """Raise UserError for a scheme that decoders cannot have."""
    if precision.decoder.name in ENCODER_ONLY:
        raise UserError(
            f"--precision {precision.name!r}: {precision.decoder.name} is for the encoder; try {precision.encoder.label}/int8"
        )


def parse_precisions(names: Sequence[str]) -> list[Precision]:
    """Parse precisions, without duplicates, in the given order; raises UserError."""
    if not names:
        raise UserError(f"--precision is empty; expected some of {', '.join(SUFFIXES)}, or encoder/decoder")
    return list(dict.fromkeys(parse_precision(name) for name in names))


def _scheme(part: str, text: str) -> Scheme:
    try:
        return parse_scheme(part)
    except ValueError as error:
        raise UserError(f"--precision {text!r}: {error}") from None
