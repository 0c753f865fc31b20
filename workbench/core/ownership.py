"""What a command may replace or delete: what the workbench made, as its own manifest says, and nothing else.

All is checked before the work begins. Anything else in the way is an error that names it; it is never deleted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.core.atomic import atomic_folder, recover
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json

CORPUS_RECORD = "source.json"  # lies in every checkpoint folder that the workbench wrote
IsOwnFile = Callable[
    [str], bool
]  # whether a file, by its path from the folder with forward slashes, is a command's own


@dataclass(frozen=True)
class OutputKind:
    """A kind of folder that a command makes."""

    name: str  # "a bundle"
    # which files in it are the command's own; None where its manifest is not there
    own: Callable[[Path], IsOwnFile | None]
    kept: tuple[str, ...] = ()  # what others put there: neither deleted nor in the way


def check_output(output: Path, inputs: Sequence[Path] = (), within: bool = False) -> None:
    """Raise UserError for an output folder that must be a mistake: a file, a link, one that holds the user's own things or an input.

    What killed processes left beside it is removed.

    Args:
        output: the folder; it need not be there.
        inputs: what the command reads.
        within: whether the output may lie in an input's folder.
    """
    another = "choose another output"
    if output.is_symlink():
        raise UserError(f"{output}: is a symbolic link; name the folder that it points to, or {another}")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder; {another}")
    place = output.resolve()
    if place.parent == place:
        raise UserError(f"{output}: is the root of the file system; {another}")
    for what, folder in _special():
        if folder == place:
            raise UserError(f"{output}: is {what}; {another}, such as {output / 'new'}")
        if folder.is_relative_to(place):
            raise UserError(f"{output}: holds {what}; {another}")
    for source in (path.resolve() for path in inputs if path.exists()):
        if source == place or source.is_relative_to(place):
            raise UserError(f"{output}: {'is' if source == place else 'holds'} the input {source}; {another}")
        if not within and source.is_dir() and place.is_relative_to(source):
            raise UserError(f"{output}: lies in the input {source}; {another}")
    if output.parent.is_dir():
        recover(output.parent)


def check_replaceable(output: Path, made: OutputKind, inputs: Sequence[Path] = (), within: bool = False) -> None:
    """Raise UserError unless a folder is absent, empty, or holds only what a command made that may replace it.

    What killed processes left beside it and in it is removed.

    Args:
        output: the folder to replace.
        made: what it must be.
        inputs: as for `check_output`.
        within: as for `check_output`.
    """
    check_output(output, inputs, within)
    if not output.exists():
        return
    if (own := made.own(output)) is not None:
        recover_below(output)
    found = next((name for name in foreign(output, own or (lambda _: False)) if name not in made.kept), None)
    if found is None:
        return
    reason = (
        f"is not a {made.name}: it holds {found!r}"
        if own is None
        else f"holds {found!r}, which is not part of the {made.name}"
    )
    raise UserError(
        f"{output}: {reason}, and only what the workbench made is deleted; choose another output, or move it away"
    )


def check_manifest(manifest: Path, inputs: Sequence[Path]) -> None:
    """Raise UserError if the manifest to write exists and is not the command's own, or if something else would be lost.

    It is the command's own if the report of what was left out lies beside it. What killed processes left there is removed first.

    Args:
        manifest: JSONL to write, with a report and perhaps a folder of audio beside it.
        inputs: what the command reads.
    """
    another = "choose another output"
    report, audio = report_of(manifest), audio_of(manifest)
    for path in (manifest, report, audio):
        if path.is_symlink():
            raise UserError(f"{path}: is a symbolic link, which would be replaced; {another}")
        if path.exists() and path.is_dir() != (path == audio):
            raise UserError(f"{path}: is a {'file' if path == audio else 'folder'}; {another}")
        for source in inputs:
            if source.exists() and source.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path}: {'holds' if path == audio else 'is'} the input {source}; {another}")
    for folder in (manifest.parent, audio):
        if folder.is_dir():
            recover(folder)
    if manifest.exists() and not report.exists():
        raise UserError(
            f"{manifest}: exists, but {report.name}, which this command writes beside its manifest, does not: it may be your own file; {another}, or move it away"
        )


def report_of(manifest: Path) -> Path:
    """Path of the report on what was left out of a manifest, and why."""
    return manifest.with_name(f"{manifest.stem}.rejected.jsonl")


def audio_of(manifest: Path) -> Path:
    """Where recordings that were made for a manifest lie."""
    return manifest.with_name(f"{manifest.stem}.audio")


def recover_below(folder: Path) -> None:
    """`recover` in a folder and all below it."""
    for parent, _, _ in os.walk(folder):
        recover(Path(parent))


def foreign(folder: Path, own: IsOwnFile) -> Iterator[str]:
    """Files and links in a folder that are not a command's own, by their paths from it."""
    for path in _files(folder):
        if not own(name := path.relative_to(folder).as_posix()):
            yield name


def remove(folder: Path, own: IsOwnFile, first: Sequence[str] = (), last: Sequence[str] = ()) -> None:
    """Delete a command's own files from a folder, then the folders that are empty now, and nothing else.

    Args:
        folder: where.
        own: which files.
        first: names of those that go first, such as the mark of a finished run.
        last: names of those that go last, such as the manifest by which the others are known.
    """
    names = [name for path in _files(folder) if own(name := path.relative_to(folder).as_posix())]
    for name in sorted(names, key=lambda name: (name in last and 1 + last.index(name), name not in first, name)):
        (folder / name).unlink(missing_ok=True)
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            Path(parent).rmdir()


@contextlib.contextmanager
def replacing(output: Path, made: OutputKind, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """`atomic_folder` for a folder of a kind, which is checked before and once more at the end: others may have written there."""
    check_replaceable(output, made, inputs)
    with atomic_folder(output) as folder:
        yield folder
        check_replaceable(output, made, inputs)


def write_record(folder: Path) -> None:
    """Note which files a checkpoint's folder holds, all of which the workbench has written."""
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    write_json(folder / CORPUS_RECORD, {"schema": 1, "files": names})


def _recorded(folder: Path) -> IsOwnFile | None:
    if not (folder / CORPUS_RECORD).is_file():
        return None
    content = read_json(folder / CORPUS_RECORD, "the record of a checkpoint's files")
    names = content.get("files") or content.get("sha256") if isinstance(content, dict) else None
    return None if not names else {CORPUS_RECORD, *map(str, names)}.__contains__


CHECKPOINT = OutputKind("checkpoint that `workbench` wrote", _recorded)


def _files(folder: Path) -> list[Path]:
    """All files in a folder and below, and links, which are not followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        found += [Path(parent) / name for name in names]
        found += [path for name in folders if (path := Path(parent) / name).is_symlink()]
    return sorted(found)


def _special() -> Iterator[tuple[str, Path]]:
    with contextlib.suppress(RuntimeError, OSError):  # there may be no home
        yield "the home folder", Path.home().resolve()
    with contextlib.suppress(OSError):  # it may have been deleted
        yield "the current folder", Path.cwd()
