"""The recordings to be labelled: files of a folder or lines of a manifest, and why some cannot be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from workbench.audio.decode import probe_seconds
from workbench.config.named_corpora import is_dataset
from workbench.core.errors import UserError
from workbench.core.locks import lock_of
from workbench.core.ownership import audio_of, report_of
from workbench.corpus.manifests import MANIFEST_NAMES, MANIFEST_SUFFIXES, read_manifest
from workbench.corpus.utterance import Recording, Utterance
from workbench.models import Family

UNUSABLE = "unusable audio"


UNKNOWN = "unknown language"


class Unfit(Recording):
    """A row of the report on a clip that was not transcribed."""

    id: str
    language: NotRequired[str]  # the clip's language, if that is the reason
    reasons: list[str]
    error: str


def audio_clips(source: Path, manifest: Path) -> tuple[list[Utterance], list[Unfit]]:
    """Clips of a manifest or of all files in a folder, by rising length, and a report's rows of files that cannot be decoded.

    Args:
        source: a folder, searched recursively whatever its files are called, or a manifest.
        manifest: where the labels will be written; what `label` itself wrote there is not a recording.

    Raises:
        UserError: nothing there, or a manifest that cannot be used.
    """
    unfit: list[Unfit] = []
    if not source.exists() and is_dataset(str(source)):
        raise UserError(
            f"{source}: is streamed, and labels are made of files; first run: workbench corpus download {source} -o FOLDER"
        )
    if source.is_file() and source.suffix.lower() not in MANIFEST_SUFFIXES:
        raise UserError(
            f"{source}: is one file; expected a folder of recordings, or a manifest ({', '.join(MANIFEST_SUFFIXES)}); "
            "`workbench transcribe` takes single recordings"
        )
    if not source.is_dir() or _has_manifest(source):
        clips = read_manifest(source, transcribed=False)
    else:
        own = (manifest, report_of(manifest), audio_of(manifest), lock_of(manifest))
        paths = sorted(
            p for p in source.rglob("*")
            if not p.is_dir() and p not in own and audio_of(manifest) not in p.parents and not is_journal(p, manifest)
        )  # fmt: skip
        if not paths:
            raise UserError(f"{source}: holds neither a manifest nor any file; expected recordings")
        clips = []
        for path in paths:
            name = _printable(path.relative_to(source).as_posix())
            try:
                clips.append(Utterance(name, path, "", probe_seconds(path), split=""))
            except UserError as error:
                unfit.append({"id": name, "audio": str(path.absolute()), "reasons": [UNUSABLE], "error": str(error)})
    return sorted(clips, key=lambda clip: (clip.seconds, clip.id)), unfit


def clips_of_known_languages(
    clips: Sequence[Utterance], family: Family, language: str | None
) -> tuple[list[Utterance], list[Unfit]]:
    """Clips in a language that the teacher supports, and a report's rows of the others; raises UserError if it does not support `--language`."""
    if language == "auto":
        return list(clips), []
    unknown: dict[str, str] = {}
    for code in {language or clip.language for clip in clips}:
        try:
            family.tokens([""], [code])
        except UserError as error:
            if language:
                raise
            unknown[code] = str(error)
    rows: list[Unfit] = [
        {"id": c.id, **recording_of(c), "language": c.language, "reasons": [UNKNOWN], "error": unknown[c.language]}
        for c in clips
        if c.language in unknown
    ]
    return [clip for clip in clips if clip.language not in unknown], rows


def recording_of(clip: Utterance) -> Recording:
    """A row's fields that name the clip's recording, with `offset` and `duration` for a segment of one."""
    source = clip.source()
    assert source is not None  # noqa: S101  labels are made of files
    return source


def _has_manifest(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MANIFEST_NAMES)


def _printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 as escapes, so that an id can be written anywhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_journal(path: Path, manifest: Path) -> bool:
    return path.parent == manifest.parent and path.match(f".{manifest.name}.*.journal")
