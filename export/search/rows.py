"""What is measured of a precision on some clips, and of the choice on others, field by field. Rates in percent, times in ms, sizes in MB."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from export.edge.bundle.content import Difference

Figure = Literal["wer", "p50_ms", "encoder_ms", "decoder_ms", "size_mb", "peak_rss_mb"]  # lower is better for all
# of each part; a model with a CTC head has one
TIMES: dict[str, Figure] = {"encoder": "encoder_ms", "decoder": "decoder_ms", "ctc": "encoder_ms"}


class Row(TypedDict):
    """Measurements of one precision."""

    name: str
    wer: float
    loops: int
    p50_ms: float
    encoder_ms: float  # median, like the next field
    decoder_ms: float
    peak_rss_mb: float
    size_mb: NotRequired[float]  # this and the following fields: only for precisions that may be chosen
    over: NotRequired[float]  # sum of the relative excesses over the limits
    breaks: NotRequired[list[str]]  # limits, in words
    compared: NotRequired[bool]  # whether it took turns with the choice in one run
    pareto: NotRequired[bool]  # whether no other of that run is better in everything


class Confirmed(TypedDict):
    """The choice (the last of the systems) beside fp32 (the first), on clips that were not used for choosing."""

    clips: int
    systems: list[Row]
    wer_difference: Difference
    speedup: float
