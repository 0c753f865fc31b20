"""What the workbench itself has written into a bundle.json (who made it, how it was verified and measured): types and bounds of what it reads back."""

from __future__ import annotations

from collections.abc import Mapping

from export.edge.bundle.fields import Check, anything, number, one_of, record, row, table, text, whole

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
_latency = record(p50=_share, p95=_share)
_client = record(
    client=text, precision=text, version=_said, required=one_of(True, False), passed=one_of(True, False),
    tokens_equal=text, wer=maybe(_share), wer_torch=maybe(_share), error_=maybe(_said),
)  # fmt: skip
_corpus = record(
    name=_said, split=_said, clips=whole(0, 10**9), headline_=one_of("wer", "cer"),
    trained_on_=maybe(one_of(True, False)), normalizers_=table(text, _said),
)  # fmt: skip
_system = record(
    name=text, precision=text, wer=_share, cer_=_share, latency_ms=_latency, size_mb=_share, peak_rss_mb=_share
)
_measured = record(corpus=_corpus, systems=row(_system, 0, MOST))
_measurement = record(
    corpus=_corpus, systems=row(_system, 0, MOST), host=record(cpu=_said), threads=whole(1, 100_000),
    other_corpora_=row(_measured, 0, MOST),
)  # fmt: skip
_run = record(
    teacher_=record(name=_said), validation_=record(wer=maybe(_share)),
    corpora_=maybe(row(anything, 0, MOST)),
)  # fmt: skip
FIELDS: dict[str, Check] = {
    "verification": record(clients=row(_client, 0, MOST)),
    "measurement": _measurement,
    "run": _run,
    "vocabulary": record(size=whole(1, 1 << 20), of=whole(1, 1 << 20), choice=_said),
    "search": record(wer_above_=maybe(number(-100, 1e6))),
}


def check_recorded(content: Mapping[str, object]) -> None:
    """Check what the workbench reads of a manifest and the runtime does not; raises ValueError that names the first wrong field."""
    for field in REQUIRED:
        if content.get(field) is None:
            raise ValueError(f"field {field!r} is missing")
    for field, check in FIELDS.items():
        if content.get(field) is not None:
            check(field, content[field])
