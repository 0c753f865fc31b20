"""What the workbench itself has written into a bundle.json (who made it, how it was verified and measured): types and bounds of what it reads back."""

from __future__ import annotations

from collections.abc import Mapping

from export.edge.bundle.fields import Check, anything, array, choice, fields, integer, mapping, number, text

REQUIRED = ("workbench", "parameters", "checkpoint_sha256")
MOST = 10_000


def maybe(check: Check) -> Check:
    """The same, or null."""

    def either(field: str, value: object) -> None:
        if value is not None:
            check(field, value)

    return either


def _said(field: str, value: object) -> None:
    """Any text of a few lines."""
    if not isinstance(value, str) or len(value) > 100_000:
        raise ValueError(f"field {field!r} is not a text of at most 100000 characters")


_share = number(0, 1e9)
_latency = fields(p50=_share, p95=_share)
_client = fields(
    client=text, precision=text, version=_said, required=choice(True, False), passed=choice(True, False),
    tokens_equal=text, wer=maybe(_share), wer_torch=maybe(_share), error_=maybe(_said),
)  # fmt: skip
_corpus = fields(
    name=_said, split=_said, clips=integer(0, 10**9), headline_=choice("wer", "cer"),
    trained_on_=maybe(choice(True, False)), normalizers_=mapping(text, _said),
)  # fmt: skip
_system = fields(
    name=text, precision=text, wer=_share, cer_=_share, latency_ms=_latency, size_mb=_share, peak_rss_mb=_share
)
_measured = fields(corpus=_corpus, systems=array(_system, 0, MOST))
_measurement = fields(
    corpus=_corpus, systems=array(_system, 0, MOST), host=fields(cpu=_said), threads=integer(1, 100_000),
    other_corpora_=array(_measured, 0, MOST),
)  # fmt: skip
_run = fields(
    teacher_=fields(name=_said), validation_=fields(wer=maybe(_share)),
    corpora_=maybe(array(anything, 0, MOST)),
)  # fmt: skip
FIELDS: dict[str, Check] = {
    "verification": fields(clients=array(_client, 0, MOST)),
    "measurement": _measurement,
    "run": _run,
    "vocabulary": fields(size=integer(1, 1 << 20), of=integer(1, 1 << 20), choice=_said),
    "search": fields(wer_above_=maybe(number(-100, 1e6))),
}


def check_recorded(content: Mapping[str, object]) -> None:
    """Check what the workbench reads of a manifest and the runtime does not; raises ValueError that names the first wrong field."""
    for field in REQUIRED:
        if content.get(field) is None:
            raise ValueError(f"field {field!r} is missing")
    for field, check in FIELDS.items():
        if content.get(field) is not None:
            check(field, content[field])
