"""A corpus made from another one's manifest: some of its languages, folds over speakers, a meta split, wrong transcripts on purpose.

The audio stays where it is. What was done is recorded beside the manifest, in derived.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from workbench.config.named_corpora import is_dataset
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import write_json, write_jsonl
from workbench.core.ownership import IsOwnFile, OutputKind, check_replaceable, replacing
from workbench.corpus.corrupt import RECORD, corrupt, corruption_record, manifest_rows
from workbench.corpus.manifests import read_manifest
from workbench.corpus.sources import corpus_identity, find_corpus
from workbench.corpus.split import VALIDATION_SHARE
from workbench.corpus.utterance import META, Utterance

DERIVED_FILE = "derived.json"


@dataclass(frozen=True)
class Derivation:
    """What to make of a corpus, in this order."""

    languages: tuple[str, ...] = ()  # those to keep; all by default
    folds: int | None = None  # number of parts of about equal size that the speakers are divided into
    fold: int | None = None  # the part that is tested on, from 1
    meta: float = 0.0  # share of the training clips, whole speakers of each language, that become the meta split
    corrupt: float = 0.0  # share of the training clips that get a wrong transcript
    corruption: str = "exchange"
    seed: int = 1

    def check(self) -> None:
        """Raise UserError for values that cannot be carried out."""
        if (self.folds is None) != (self.fold is None):
            raise UserError("--folds and --fold belong together: the number of parts, and the one to test on")
        if self.folds is not None and self.fold is not None and not (self.folds >= 2 and 1 <= self.fold <= self.folds):
            raise UserError(f"--fold {self.fold} of --folds {self.folds}: expected at least 2 folds, and one of them")
        if not 0 <= self.meta < 1:
            raise UserError(f"--meta {self.meta:g}: expected a share between 0 and 1, such as 0.1")


def _own_files(folder: Path) -> IsOwnFile | None:
    return {"manifest.jsonl", RECORD, DERIVED_FILE}.__contains__ if (folder / DERIVED_FILE).is_file() else None


DERIVED = OutputKind("derived corpus", _own_files)


def derive(sources: Sequence[str], how: Derivation, output: Path) -> Path:
    """Write a corpus made from another one, or from several together; returns its folder.

    Args:
        sources: the corpora: built-in names, or paths of manifests or of their folders. The ids of several begin with the corpus's name.
        how: what to make of it.
        output: the folder to write, replaced if it holds a derived corpus.

    Raises:
        UserError: no such corpus or language, values that cannot be carried out, or speakers that are not known.
    """
    utterances: list[Utterance] = []
    found: list[Path] = []
    names: list[str] = []
    for source in sources:
        if is_dataset(source):
            raise UserError(
                f"corpus {source!r}: only a manifest or a built-in corpus can be derived from; write it to disk with `workbench corpus download`"
            )
        found.append(find_corpus(source))
        names.append(corpus_identity(source)["name"])
        if names[-1] in names[:-1]:
            raise UserError(
                f"corpus {source!r}: another one is named {names[-1]!r}, too; rename one of the folders, which ids begin with"
            )
        utterances += _named(read_manifest(found[-1]), names[-1] if len(sources) > 1 else "")
    audio = [u.audio for u in utterances if isinstance(u.audio, Path)]
    check_replaceable(output, DERIVED, [*found, *audio])
    clean = derived(utterances, how)
    wrong = corrupt(clean, how.corrupt, how.corruption, how.seed) if how.corrupt else clean
    with replacing(output, DERIVED) as folder:
        write_jsonl(folder / "manifest.jsonl", manifest_rows(wrong))
        if how.corrupt:
            write_jsonl(folder / RECORD, corruption_record(clean, wrong))
        write_json(
            folder / DERIVED_FILE,
            {"schema": 1, "sources": [corpus_identity(source) for source in sources], **asdict(how)},
        )
    return output


def _named(utterances: Sequence[Utterance], corpus: str) -> list[Utterance]:
    """Ids and speakers that are not those of another corpus, where several are put together."""
    if not corpus:
        return list(utterances)
    return [replace(u, id=f"{corpus}:{u.id}", speaker=f"{corpus}:{u.speaker}" if u.speaker else "") for u in utterances]


def derived(utterances: Sequence[Utterance], how: Derivation) -> list[Utterance]:
    """Some utterances with their new splits; transcripts are left as they are. Raises UserError as `derive` does."""
    how.check()
    known = sorted({u.language for u in utterances})
    for language in how.languages:
        if language not in known:
            raise UserError(f"--language {language}{did_you_mean(language, known)}")
    kept = [u for u in utterances if not how.languages or u.language in how.languages]
    if how.folds is not None and how.fold is not None:
        kept = fold_splits(kept, how.folds, how.fold, how.seed)
    return meta_speakers(kept, how.meta, how.seed) if how.meta else kept


def fold_splits(utterances: Sequence[Utterance], folds: int, fold: int, seed: int) -> list[Utterance]:
    """New splits, disjoint by speaker: one of `folds` parts is the test split, the others are trained and validated on.

    Speakers are drawn in a random order, each into the part that has the fewest clips so far, so that parts are of about equal size.
    About a tenth of the clips of the other parts becomes the validation split, whole speakers again.
    """
    by_speaker = _by_speaker(utterances)
    if len(by_speaker) <= folds:
        raise UserError(
            f"--folds {folds}: the corpus has {len(by_speaker)} speakers; expected more speakers than folds"
        )
    order = np.random.default_rng(seed).permutation(sorted(by_speaker)).tolist()
    parts: list[list[str]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    for speaker in order:
        smallest = sizes.index(min(sizes))
        parts[smallest].append(speaker)
        sizes[smallest] += len(by_speaker[speaker])
    tested = set(parts[fold - 1])
    others = [speaker for speaker in order if speaker not in tested]
    wanted = VALIDATION_SHARE * sum(len(by_speaker[speaker]) for speaker in others)
    held = _until(others, by_speaker, wanted)
    if len(held) == len(others):
        raise UserError(
            f"--folds {folds}: {len(by_speaker)} speakers are too few; none is left to train on in part {fold}"
        )
    split = {s: "test" if s in tested else "validation" if s in held else "train" for s in order}
    return [replace(u, split=split[u.speaker]) for u in utterances]


def meta_speakers(utterances: Sequence[Utterance], share: float, seed: int) -> list[Utterance]:
    """Give the meta split at least `share` of each language's training clips, whole speakers, of which one is left to train on.

    A language with a single training speaker gives none.
    """
    generator = np.random.default_rng(seed)
    chosen: set[tuple[str, str]] = set()
    utterances = [replace(u, split="train") if u.split == META else u for u in utterances]  # drawn anew
    training = [u for u in utterances if u.split == "train"]
    for language in sorted({u.language for u in training}):
        clips = [u for u in training if u.language == language]
        by_speaker = _by_speaker(clips)
        order = generator.permutation(sorted(by_speaker)).tolist()
        # few clips first, so that a language with one voice that says most is not emptied
        order.sort(key=lambda speaker: len(by_speaker[speaker]) > share * len(clips))
        chosen |= {(language, speaker) for speaker in _until(order[:-1], by_speaker, share * len(clips))}
    if not chosen:
        raise UserError(
            f"--meta {share:g}: no language has two speakers to train on; a meta split takes whole speakers, and leaves one"
        )
    return [
        replace(u, split=META) if u.split == "train" and (u.language, u.speaker) in chosen else u for u in utterances
    ]


def _by_speaker(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    by_speaker: dict[str, list[Utterance]] = {}
    for u in utterances:
        if not u.speaker:
            raise UserError(f"{u.place}: field 'speaker' is missing; parts that share no speaker need it on every row")
        by_speaker.setdefault(u.speaker, []).append(u)
    return by_speaker


def _until(order: Sequence[str], by_speaker: dict[str, list[Utterance]], clips: float) -> set[str]:
    """The first speakers that together have at least so many clips."""
    taken, count = set(), 0
    for speaker in order:
        if count >= clips:
            break
        taken.add(speaker)
        count += len(by_speaker[speaker])
    return taken
