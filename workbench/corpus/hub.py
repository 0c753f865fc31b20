"""Any Hugging Face dataset with audio and text, streamed, so that only the clips used are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from workbench.audio import probe_seconds
from workbench.corpus.manifests import FIELDS
from workbench.corpus.utterance import Utterance
from workbench.errors import UserError

TEXT_COLUMNS = (*FIELDS["text"], "normalized_text", "raw_transcription")


def read_dataset(spec: str, split: str, limit: int | None = None) -> list[Utterance]:
    """Stream one split of a dataset named `ID` or `ID:CONFIG` (a hub id or a local dataset folder) into utterances.

    The encoded audio of the clips read is held in memory; `limit` bounds how many.

    Raises:
        UserError: the dataset cannot be opened, or has no audio or no transcript column.
    """
    return list(islice(_stream(spec, split), limit))


def _stream(spec: str, split: str) -> Iterator[Utterance]:
    from datasets import Audio, load_dataset

    name, _, config = spec.partition(":")
    try:
        dataset = load_dataset(name, config or None, split=split, streaming=True)
    except (OSError, ValueError) as error:  # what datasets raises for an id, a config or a split that does not exist
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"corpus hf:{spec}: split {split!r} cannot be opened ({reason})") from None
    columns = list(dataset.features or {})
    audio_column = next((c for c in columns if isinstance(dataset.features[c], Audio)), None)
    text_column = next((c for c in TEXT_COLUMNS if c in columns), None)
    if audio_column is None or text_column is None:
        missing = "audio" if audio_column is None else f"transcript (one of {', '.join(TEXT_COLUMNS)})"
        raise UserError(f"corpus hf:{spec}: has no {missing} column; its columns are {', '.join(columns)}")
    for number, row in enumerate(_undecoded(dataset, audio_column)):
        audio = _encoded(row[audio_column])
        text = str(row[text_column]).strip()
        if text:
            yield Utterance(_row_id(row, number), audio, text, probe_seconds(audio), _language(row, config), split)


def _undecoded(dataset: Any, column: str) -> Any:
    """The dataset with its audio as encoded bytes or a path, which our own decoder reads like every other source.

    datasets 4 asks for torchcodec even where nothing is decoded, as soon as rows are made by Python (audio folders)
    rather than read from Parquet; those rows are paths.
    """
    from datasets import Audio, Value

    undecoded = dataset.cast_column(column, Audio(decode=False))
    try:
        next(iter(undecoded), None)
    except ImportError:
        return dataset.cast_column(column, Value("string"))
    return undecoded


def _encoded(clip: dict[str, Any] | str) -> bytes:
    import fsspec

    if isinstance(clip, dict) and clip.get("bytes"):
        return bytes(clip["bytes"])
    with fsspec.open(clip["path"] if isinstance(clip, dict) else clip, "rb") as file:
        return bytes(file.read())


def _row_id(row: dict[str, Any], number: int) -> str:
    return str(row["id"]) if row.get("id") not in (None, "") else f"{number:08d}"


def _language(row: dict[str, Any], config: str) -> str:
    named = str(row.get("locale") or row.get("language") or config or "en")
    code = named.lower().replace("-", "_").split("_")[0]
    return code if len(code) == 2 else "en"
