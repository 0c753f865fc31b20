"""The chain as functions: `import workbench` gives them lazily, and the command line is built on them.

import workbench

run = workbench.distill("quickstart", {"output": "runs/mine", "stages.decoder.epochs": 2})
bundle = workbench.export(run.student, "runs/mine/bundle", precision=["fp32", "int8"])
measured = workbench.measure([bundle.folder], against="whisper-base")
print(workbench.load(bundle.folder, "int8").transcribe(workbench.read_audio("speech.mp3")).text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import UserError

if TYPE_CHECKING:
    from export.edge import LanguageModelWeights, Recognizer
    from export.edge.bundle.content import Verification
    from export.measurement.content import Report
    from workbench.audio.decode import Wave
    from workbench.config.recipe import Recipe

VERIFIED_CLIPS = 24  # by `export`


@dataclass(frozen=True)
class Run:
    """What a distillation wrote."""

    folder: Path

    @property
    def student(self) -> Path:
        """The student: a folder that transformers loads."""
        return self.folder / "student"

    @property
    def scores(self) -> dict[str, Any]:
        """Validation and corpus figures of the run, as scores.json has them."""
        from workbench.core.files import read_object

        return read_object(self.folder / "scores.json", "a run's scores")


@dataclass(frozen=True)
class Bundle:
    """An exported folder."""

    folder: Path

    @property
    def precisions(self) -> list[str]:
        """The precisions that it holds, the clients' default first."""
        from export.bundle.manifest import open_manifest

        return open_manifest(self.folder).precisions

    def size_mb(self, precision: str) -> float:
        """Megabytes that our own runtime reads of it in a precision."""
        from export.bundle.manifest import open_manifest, size_mb

        return size_mb(open_manifest(self.folder), precision)


@dataclass(frozen=True)
class Measurement:
    """What was measured: report.json's content, and where it lies beside report.html."""

    folder: Path
    report: Report


@dataclass(frozen=True)
class ExportOptions:
    """What is seldom changed about an export."""

    name: str = ""  # what the bundle is called; the run's or folder's name by default
    vocabulary: str = ""  # tokens to keep, as for `workbench export --vocabulary`
    overwrite: bool = False  # replace a bundle with other content
    per_channel: bool = True  # int8: a scale for each output channel
    reduce_range: bool | None = None  # int8: 7 bits; by default where this CPU lacks an int8 dot product
    symmetric: bool = False  # no zero points
    decoder_exporter: str = "workbench"  # of the decoder for Hugging Face's runtimes: workbench or optimum
    budget: str = ""  # find the fastest precision within it, such as wer<=+0.5,size<=60
    device_profile: Path | None = None  # JSON that describes another device, with a budget
    threads: int | None = None  # of the search within a budget


@dataclass(frozen=True)
class MeasureOptions:
    """What is seldom changed about a measurement."""

    split: str = "test"
    clips: int | None = None  # at most this many of each corpus
    threads: int | None = None  # of each system; all cores by default
    repeats: int = 1  # passes over each clip, of which the median counts
    remeasure: bool = False  # even if report.json is up to date
    robustness: bool = True  # also count what is written for silence, noise and music
    preset: str = ""  # a leaderboard's protocol in place of corpora: open-asr-leaderboard
    beams: int = 1  # of every bundle; the teacher decodes greedily
    lm: Path | None = None  # n-gram language model, for bundles with a CTC head
    lm_weights: LanguageModelWeights | None = None  # as for `Recognizer.new_language_model`


def distill(
    recipe: str | Path, overrides: Mapping[str, object] | Sequence[str] | None = None, *, restart: bool = False
) -> Run:
    """Train a student from a recipe, or resume a killed run.

    Args:
        recipe: a YAML file, or a name as listed by `workbench recipes`.
        overrides: values by dotted key, such as {"stages.decoder.epochs": 2}, or `key=value` texts.
        restart: delete what the run folder holds and start over.

    Raises:
        UserError: the recipe is wrong or cannot be run here, or the run folder holds another one's run.
    """
    from workbench.config.recipe import load_recipe

    parsed = load_recipe(Path(recipe), overrides)
    from workbench.training.trainer import distill as train

    return Run(train(parsed, restart).parent)


def export(
    student: str | Path, output: str | Path, *, precision: Sequence[str] = ("fp32", "int8"), corpus: str | None = None,
    verify: bool = True, options: ExportOptions | None = None,
) -> Bundle:  # fmt: skip
    """Export a checkpoint as a bundle, and verify it in every installed runtime.

    Args:
        student: a student, or any checkpoint of a Whisper or a CTC model, as a folder.
        output: folder of the bundle.
        precision: precisions, the clients' default first.
        corpus: clips to calibrate, search and verify on; by default those of the run that made the student.
        verify: False to leave verification out.
        options: everything else.

    Raises:
        UserError: the checkpoint or the options are wrong, or a runtime does not write what torch writes.
    """
    from export.assembly.alignment import alignment_clips
    from export.assembly.build import export_bundle
    from export.bundle.manifest import open_manifest
    from export.quantization.int8 import Int8Options

    chosen = options or ExportOptions()
    checkpoint, folder = Path(student), Path(output)
    corpus = corpus or corpus_of_run(checkpoint)
    texts: list[str] = []
    if chosen.vocabulary:
        from workbench.corpus import open_corpus

        texts = [u.text for u in open_corpus(corpus, "validation")]
    int8 = Int8Options(chosen.per_channel, chosen.reduce_range, chosen.symmetric)
    how: dict[str, Any] = {
        "name": chosen.name, "overwrite": chosen.overwrite, "vocabulary": chosen.vocabulary, "texts": texts,
        "aligned": alignment_clips(corpus), "through": chosen.decoder_exporter,
    }  # fmt: skip
    if chosen.budget or chosen.device_profile:
        from export.search.search import export_for

        bundle, _ = export_for(
            checkpoint, folder, chosen.budget, chosen.device_profile, corpus, int8, chosen.threads, **how
        )
    else:
        from export.quantization.quantize import calibration_clips

        calibration = calibration_clips(corpus) if "int8_static" in ",".join(precision) else []
        bundle = export_bundle(checkpoint, folder, list(precision), options=int8, calibration=calibration, **how)
    if verify:
        known = open_manifest(bundle).content.get("verification")
        check_verified(bundle, known or verify_clients(bundle, checkpoint, corpus, clips=VERIFIED_CLIPS))
    return Bundle(bundle)


def verify_clients(
    bundle: Path, checkpoint: Path, corpus: str, split: str = "validation", clips: int | None = None,
    clients: Sequence[str] = (), threads: int | None = None,
) -> Verification:  # fmt: skip
    """Run a bundle in every installed runtime, or those of `clients`, and compare with torch; what was found is also in bundle.json."""
    from export.verification.verify import verify_bundle
    from workbench.corpus import corpus_identity, scored_clips

    name = corpus_identity(corpus)["name"]  # a bundle is published: not the path
    return verify_bundle(
        bundle, checkpoint, scored_clips(corpus, split, clips), f"{name} {split}", list(clients), threads
    )


def check_verified(bundle: Path, found: Verification) -> None:
    """Log how each runtime differs that does; raise UserError if one does that must agree with torch."""
    import logging

    from export.verification.agreement import explain

    failing = [c for c in found["clients"] if not c["passed"]]
    for one in sorted(failing, key=lambda c: c["required"]):
        for line in explain(one):
            logging.getLogger("workbench").error("%s%s", "" if one["required"] else "note: ", line)
    if failed := [f"{c['client']} {c['precision']}" for c in failing if c["required"]]:
        raise UserError(f"{bundle}: fails in {', '.join(failed)}; the reasons are above and in bundle.json")


def measure(
    bundles: Sequence[str | Path], against: str | None = None, output: str | Path | None = None, *,
    corpora: Sequence[str] = (), options: MeasureOptions | None = None,
) -> Measurement:  # fmt: skip
    """Measure WER, latency, memory and size of bundles against their teacher, interleaved on the same clips.

    Args:
        bundles: folders of bundles; every precision of each is measured.
        against: the teacher: a name as listed by `workbench teachers`, or its bundle; by default that of the first bundle's run.
        output: folder for report.json and report.html; beside the first bundle by default.
        corpora: where the clips come from, the main one first; by default that of the first bundle's run.
        options: everything else.

    Raises:
        UserError: a bundle is damaged, or a corpus or the teacher cannot be obtained.
    """
    from export.bundle.manifest import open_manifest
    from export.edge import LanguageModelWeights
    from export.measurement.decoding import Decoding
    from export.measurement.measure import measure as run
    from workbench.core.locks import output_lock

    paths = [Path(bundle) for bundle in bundles]
    if not paths:
        raise UserError("no bundle to measure; name at least one")
    for path in paths:
        open_manifest(path)  # before a folder is made for the report
    chosen = options or MeasureOptions()
    if chosen.preset and (corpora or chosen.split != "test"):
        raise UserError("--preset names test sets of its own; leave out --corpus and --split")
    teacher = against or teacher_of_run(paths[0])
    folder = Path(output) if output else paths[0].resolve().parent
    with output_lock(folder / "report.json"):
        report = run(
            paths, teacher, folder, list(corpora) or [corpus_of_run(paths[0])], chosen.split, chosen.clips,
            chosen.threads, chosen.repeats, chosen.remeasure, chosen.robustness, chosen.preset,
            Decoding(chosen.beams, chosen.lm, chosen.lm_weights or LanguageModelWeights()),
        )  # fmt: skip
    return Measurement(folder, report)


def load(bundle: str | Path, precision: str | None = None, threads: int | None = None) -> Recognizer:
    """Open a bundle for transcribing, without torch: `load(BUNDLE).transcribe(wave).text`.

    Args:
        bundle: folder of the bundle.
        precision: one of its own; its first by default.
        threads: all cores by default.

    Raises:
        UserError: it is not a bundle, or damaged, or has no such precision.
    """
    from export.edge import BundleError, Recognizer

    try:
        return Recognizer(Path(bundle), precision, threads)
    except BundleError as error:
        raise UserError(str(error)) from None


def read_audio(path: str | Path) -> Wave:
    """A recording of any format as `load(BUNDLE).transcribe` takes it: [samples], 16 kHz mono; raises UserError if it cannot be read."""
    from workbench.audio.decode import decode

    return decode(Path(path))


def corpus_of_run(made: Path | None) -> str:
    """Corpus of the run that a student or bundle lies in; the built-in prompts if it lies in none."""
    recipe = _recipe_of(made)
    return recipe.corpus if recipe else "prompts-en"


def teacher_of_run(made: Path | None) -> str:
    """Teacher of the run that a student or bundle lies in; the built-in one if it lies in none."""
    recipe = _recipe_of(made)
    return recipe.teacher if recipe else "whisper-base"


def _recipe_of(made: Path | None) -> Recipe | None:
    from workbench.config.recipe import load_recipe

    path = made.resolve().parent / "recipe.yaml" if made else None  # resolved: the parent of `.` is `.`
    return load_recipe(path) if path and path.is_file() else None
