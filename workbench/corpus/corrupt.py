"""A corpus with wrong transcripts on purpose, to see how a method copes with noisy labels.

Only the training split is touched. Which utterances were corrupted is recorded beside the manifest, in corrupted.jsonl, with
both texts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.core.errors import UserError
from workbench.core.files import write_jsonl
from workbench.core.ownership import IsOwnFile, OutputKind, check_replaceable, replacing
from workbench.corpus.references import VERSION_FILE
from workbench.corpus.utterance import Utterance

RECORD = "corrupted.jsonl"
WORDS_REPLACED = 0.5  # share of an utterance's words that are replaced, at least one word


def _own_files(folder: Path) -> IsOwnFile | None:
    return {"manifest.jsonl", RECORD, VERSION_FILE}.__contains__ if (folder / RECORD).is_file() else None


CORRUPTED = OutputKind("corrupted corpus", _own_files)


def corrupt(utterances: Sequence[Utterance], share: float, how: str, seed: int) -> list[Utterance]:
    """Give a share of the training utterances another transcript.

    Args:
        utterances: the utterances of all splits; only the training split is changed.
        share: share of the training utterances to corrupt, in (0, 1).
        how: `exchange` permutes their transcripts, within each language, so that none keeps its own text; `words` replaces half
            the words of each by words of its language's training texts.
        seed: decides which and how.

    Raises:
        UserError: the share is out of range, or the texts cannot be exchanged because nearly all are alike.
    """
    if not 0 < share < 1:
        raise UserError(f"--corrupt {share:g}: expected a share between 0 and 1, such as 0.4")
    generator = np.random.default_rng(seed)
    training = [i for i, u in enumerate(utterances) if u.split == "train" and u.scored]  # others are not trained on
    out = list(utterances)
    for language in dict.fromkeys(
        utterances[i].language for i in training
    ):  # another language's text would be told at once
        clips = [i for i in training if utterances[i].language == language]
        count = round(share * len(clips))
        if how == "exchange" and count == 1:  # one text cannot be exchanged
            count = min(2, len(clips) // 2 * 2)
        chosen = sorted(generator.choice(clips, count, replace=False).tolist())
        texts = [utterances[i].text for i in chosen]
        if how == "exchange":
            new = _exchanged(texts, generator)
        else:
            words = [word for i in clips for word in utterances[i].text.split()]
            new = [_replaced(text, words, generator) for text in texts]
        for i, text in zip(chosen, new, strict=True):
            out[i] = replace(out[i], text=text)
    return out


def write_corrupted(
    utterances: Sequence[Utterance], share: float, how: str, seed: int, output: Path, clean: Path | None = None
) -> Path:
    """Write the corrupted corpus as a folder with manifest.jsonl and corrupted.jsonl; the audio stays where it is.

    Args:
        utterances: the clean corpus, all splits.
        share: as for `corrupt`.
        how: as for `corrupt`.
        seed: as for `corrupt`.
        output: the folder to write.
        clean: the clean corpus's folder, if it has one; if that carries a version, the corrupted one carries the same.
    """
    audio = [u.audio for u in utterances if isinstance(u.audio, Path)]
    check_replaceable(output, CORRUPTED, [*([clean] if clean else []), *audio])
    wrong = corrupt(utterances, share, how, seed)
    rows = manifest_rows(wrong)
    with replacing(output, CORRUPTED) as folder:
        for name, lines in (("manifest.jsonl", rows), (RECORD, corruption_record(utterances, wrong))):
            write_jsonl(folder / name, lines)
        if clean is not None and (clean / VERSION_FILE).is_file():
            shutil.copy(clean / VERSION_FILE, folder)
    return output


def manifest_rows(utterances: Sequence[Utterance]) -> list[dict[str, object]]:
    """Utterances as a manifest's rows, their audio where it is; raises UserError for clips that no file holds."""
    rows = []
    for u in utterances:
        if (source := u.source()) is None:
            raise UserError(f"{u.place}: is not an audio file of its own; write the corpus as a manifest first")
        row = {"id": u.id, **source, "text": u.text, "duration": u.seconds, "language": u.language, "split": u.split}
        row |= {"speaker": u.speaker} if u.speaker else {}
        rows.append(row if u.scored else {**row, "scored": False})
    return rows


def corruption_record(clean: Sequence[Utterance], wrong: Sequence[Utterance]) -> list[dict[str, str]]:
    """The rows of corrupted.jsonl: which utterances have another transcript, with both."""
    return [
        {"id": new.id, "text": new.text, "was": old.text}
        for old, new in zip(clean, wrong, strict=True)
        if old.text != new.text
    ]


def _exchanged(texts: list[str], generator: np.random.Generator) -> list[str]:
    for _ in range(1000):
        order = generator.permutation(len(texts))
        same = [i for i in range(len(texts)) if texts[order[i]] == texts[i]]
        for i in same:  # swap what stayed with any that makes both differ
            for j in generator.permutation(len(texts)).tolist():
                if texts[order[j]] != texts[i] and texts[order[i]] != texts[j]:
                    order[i], order[j] = order[j], order[i]
                    break
        if all(texts[order[i]] != texts[i] for i in range(len(texts))):
            return [texts[i] for i in order]
    raise UserError("--corrupt: the transcripts are too similar to be exchanged; use --corruption words")


def _replaced(text: str, words: Sequence[str], generator: np.random.Generator) -> str:
    said = text.split()
    for i in generator.choice(len(said), max(1, round(WORDS_REPLACED * len(said))), replace=False).tolist():
        others = [word for word in words if word.lower() != said[i].lower()]
        if others:
            said[i] = others[int(generator.integers(len(others)))]
    return " ".join(said)
