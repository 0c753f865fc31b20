"""Where a corpus comes from: a built-in one, a manifest, or a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.audio.decode import LONGEST_SECONDS
from workbench.config.named_corpora import LIST_COMMAND, NAMED, hub_dataset, is_dataset
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import expand_user
from workbench.core.hashing import cache_dir, cached_sha256
from workbench.corpus.hub import read_dataset
from workbench.corpus.manifests import find_manifest, read_manifest
from workbench.corpus.perturb import concatenated, speed_perturbed
from workbench.corpus.references import CORRECTED, check_current
from workbench.corpus.utterance import META, SPLITS, Utterance

if TYPE_CHECKING:
    from workbench.config.recipe import Recipe

BUILT_IN = {"prompts-en": Path(__file__).parent / "prompts-en"}
BUILDABLE = tuple(f"prompts-{language}" for language in CORRECTED)


def corpora_dir() -> Path:
    """Where `workbench corpus` puts what it builds; a corpus there is known by its folder's name."""
    return cache_dir() / "corpora"


def find_corpus(source: str) -> Path:
    """Manifest or folder of a corpus that is not a hub dataset; raises UserError if there is none, or if it is out of date."""
    if source in BUILT_IN:
        return BUILT_IN[source]
    built = corpora_dir() / source
    if "/" not in source and (built / "manifest.jsonl").is_file():
        check_current(built, source)
        return built
    path = expand_user(source)
    if not path.exists():
        if source.split("-corrupt")[0] in ("prompts-en", *BUILDABLE):
            language, _, percent = source.removeprefix("prompts-").partition("-corrupt")
            more = f" --corrupt {int(percent) / 100:g}" if percent.isdigit() else ""
            raise UserError(
                f"corpus {source!r} is not built yet; run: workbench corpus prompts --language {language}{more}"
            )
        raise UserError(
            f"corpus {source!r}: neither a path nor a corpus's name{did_you_mean(source, corpus_names())}; {LIST_COMMAND}"
        )
    folder = path if path.is_dir() else path.parent
    check_current(folder, folder.resolve().name)
    return path


def corpus_names() -> list[str]:
    """Names that a corpus can be given by: the built-in ones, those that can be built, and the public ones."""
    return [*BUILT_IN, *BUILDABLE, *NAMED]


def list_names() -> list[dict[str, str]]:
    """A row for each name: its parts, splits, what it is, and the dataset that it comes from."""
    every = ", ".join(SPLITS)
    rows = [{"name": name, "parts": "", "splits": every, "what": "English telephone prompts of one speaker; in the package", "dataset": ""} for name in BUILT_IN]  # fmt: skip
    rows += [{"name": name, "parts": "", "splits": every, "what": "telephone prompts; built by `workbench corpus prompts`", "dataset": ""} for name in BUILDABLE]  # fmt: skip
    for name, corpus in NAMED.items():
        parts = [part for part in corpus.variants if part]
        several = f"{len(parts)}, such as {corpus.example}" if corpus.example else ", ".join(parts)
        splits = {split for dataset in corpus.variants.values() for split in dataset.splits or ()}
        datasets = sorted({dataset.id for dataset in corpus.variants.values()})
        rows.append(
            {
                "name": name,
                "parts": several,
                "splits": ", ".join(s for s in SPLITS if s in splits),
                "what": corpus.what,
                "dataset": ", ".join(datasets),
            }
        )
    return rows


def corpus_identity(source: str) -> dict[str, str]:
    """Identity of a corpus, independent of its path: its name, and the SHA-256 of its manifest; of a dataset, its id.

    Raises:
        UserError: no such corpus.
    """
    if is_dataset(source):
        return {"name": hub_dataset(source).source}
    manifest = find_manifest(find_corpus(source))
    name = source if "/" not in source else manifest.parent.resolve().name
    return {"name": name, "manifest_sha256": cached_sha256(manifest)}


def same_corpus(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities are of one corpus; of datasets, whether they hold the same recordings, whatever their names and parts."""
    if "manifest_sha256" not in {**one, **other} and is_dataset(one["name"]) and is_dataset(other["name"]):
        # taken from the name, since a bundle of an earlier version records no more
        return _recordings(one["name"]) == _recordings(other["name"])
    return dict(one) == dict(other)


def _recordings(source: str) -> str:
    try:
        return hub_dataset(source).recordings
    except UserError:  # a name of another version
        return source


def open_corpus(source: str, split: str, limit: int | None = None) -> list[Utterance]:
    """Open one split of a corpus.

    Args:
        source: a built-in name (`prompts-en`), a public corpus's (`librispeech`, `fleurs:hi_in`), the path of a manifest or of a folder that holds one, or `hf:ID[:CONFIG]`.
        split: train, validation or test; or meta, if the corpus has such a part.
        limit: at most this many utterances, the first ones.

    Raises:
        UserError: no such corpus or split, an unusable line, or a clip longer than Whisper's 30 s window.
    """
    if split not in (*SPLITS, META):
        raise UserError(f"corpus split {split!r}{did_you_mean(split, SPLITS)}")
    if is_dataset(source):
        return read_dataset(source, split, limit)
    return _of_split(read_manifest(find_corpus(source)), source, split, limit)


def _of_split(everything: Sequence[Utterance], source: str, split: str, limit: int | None = None) -> list[Utterance]:
    """The first clips of one split of a manifest; raises UserError if there is none, or for one that is longer than Whisper's window."""
    found = [u for u in everything if u.split == split][:limit]
    if not found:
        raise UserError(_empty_split(source, split, everything))
    return _within_window(found)


def _within_window(utterances: list[Utterance]) -> list[Utterance]:
    """The clips as they are; raises UserError for one that is longer than Whisper's window."""
    for utterance in utterances:
        if utterance.seconds > LONGEST_SECONDS:
            raise UserError(
                f"{utterance.place}: lasts {utterance.seconds:,.1f} s, expected at most {LONGEST_SECONDS:.0f} s; "
                "`workbench label` cuts long recordings into utterances"
            )
    return utterances


def scored_clips(source: str, split: str, limit: int | None = None) -> list[Utterance]:
    """The clips of a split that a system can be scored on: those whose reference is not marked as incomplete.

    Everything that computes an error rate takes its clips from here; arguments as for `open_corpus`, and `limit` counts scored clips.

    Raises:
        UserError: as `open_corpus`, or all clips of the split are marked.
    """
    return _scored(open_corpus(source, split, limit if is_dataset(source) else None), source, split)[:limit]


def _scored(utterances: Sequence[Utterance], source: str, split: str) -> list[Utterance]:
    """Those that are scored; raises UserError if there is none."""
    scored = [u for u in utterances if u.scored]
    if not scored:
        raise UserError(f"corpus {source!r}: all clips of split {split!r} are marked as not scorable")
    return scored


def meta_split(source: str, limit: int | None = None) -> list[Utterance]:
    """The scored clips of a corpus's meta split; none if it has no such split, as no dataset of a hub has.

    A weighting that looks ahead learns its weights on them instead of on the validation split, and does not train on them. Every other
    run does, so that no system has speech of its own that the others do not have.
    """
    if is_dataset(source):
        return []
    return _meta_clips(read_manifest(find_corpus(source)))[:limit]


def _meta_clips(everything: Sequence[Utterance]) -> list[Utterance]:
    return _within_window([u for u in everything if u.split == META and u.scored])


def _training_clips(source: str, meta: bool, limit: int | None = None) -> list[Utterance]:
    """The scored clips of the training split and, if they are wanted, of the meta split after them; a manifest is read once."""
    if is_dataset(source) or not meta:
        return scored_clips(source, "train", limit)
    everything = read_manifest(find_corpus(source))
    train = _scored(_of_split(everything, source, "train"), source, "train")
    return (train + _meta_clips(everything))[:limit]


def _empty_split(source: str, split: str, everything: Sequence[Utterance]) -> str:
    counts = ", ".join(f"{name} {sum(u.split == name for u in everything)}" for name in SPLITS)
    return (
        f"corpus {source!r}: its split {split!r} is empty (clips: {counts}); give every row of the manifest a field 'split' "
        "(train, validation or test), so that each part has clips. Where there is none, a hash of the transcript "
        "decides, which can leave a part of a small corpus empty"
    )


def training_set(
    source: str,
    limit: int | None,
    more: Sequence[str] = (),
    speeds: Sequence[float] = (),
    longest: float = 0.0,
    seed: int = 0,
    meta: bool = True,
) -> list[Utterance]:
    """The utterances to train on: a corpus, more corpora, each clip at more speeds, and short clips joined.

    Clips that are not scored are left out: a label that leaves words out teaches deletions.

    Args:
        source: the corpus, as for `open_corpus`.
        limit: at most this many utterances of it.
        more: corpora whose training splits are added whole; their ids are prefixed with the corpus's name.
        speeds: speeds that each utterance is added at.
        longest: clips are also joined into utterances of up to this many seconds; 0 for none.
        seed: decides which are joined.
        meta: whether the corpora's meta splits are trained on, too.

    Raises:
        UserError: as `open_corpus`.
    """
    utterances = _training_clips(source, meta, limit)
    for other in more:
        utterances += [replace(u, id=f"{other}:{u.id}") for u in _training_clips(other, meta)]
    out = utterances + speed_perturbed(utterances, speeds)
    return out + concatenated(utterances, longest, seed) if longest else out


def recipe_training_set(recipe: Recipe) -> list[Utterance]:
    """The `training_set` that a recipe names, without a meta split that its weighting learns on; raises UserError as `training_set` does."""
    augment = recipe.augment
    return training_set(
        recipe.corpus,
        recipe.max_clips,
        recipe.more_corpora,
        augment.speed_factors,
        augment.concatenate_seconds,
        recipe.seed,
        meta=not recipe.looks_ahead,
    )


def recipe_meta_set(recipe: Recipe) -> list[Utterance]:
    """What a recipe's weighting looks ahead on: its corpus's meta split or, where there is none, the validation split; empty if it does not look ahead."""
    if not recipe.looks_ahead:
        return []
    return meta_split(recipe.corpus, recipe.max_clips) or scored_clips(recipe.corpus, "validation", recipe.max_clips)
