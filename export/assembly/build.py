"""Write a bundle: one folder that every runtime loads (docs/bundle.md).

It is written completely or not at all: it is built beside its place and moved there once everything in it has been checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from export.assembly.client_files import write_client_files
from export.assembly.current import ExportOptions, exporter_fingerprint, is_current
from export.assembly.detector import copy_detector
from export.assembly.origin import Origin, find_origin
from export.bundle.manifest import BUNDLE, write_manifest
from export.edge.bundle.content import Content, Int8, Vocabulary
from export.edge.bundle.manifest import FORMAT
from export.graphs.lint import LARGEST
from export.quantization.int8 import DEFAULTS, Int8Options
from export.quantization.precisions import Precision, check_decoder_scheme, parse_precisions
from workbench import __version__
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.schemes import Scheme
from workbench.core.atomic import staging_folder
from workbench.core.disk import check_free_space
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import write_json
from workbench.core.locks import output_lock
from workbench.core.machine.host import describe_host
from workbench.core.ownership import check_output, check_replaceable, replacing
from workbench.core.progress import step
from workbench.corpus import Utterance
from workbench.models import check_not_run, has_ctc_head
from workbench.models.resolve import fingerprint
from workbench.models.students import parameters
from workbench.models.whisper.family import WINDOW_SECONDS, Whisper
from workbench.models.whisper.limits import MAX_TOKENS_PER_SECOND, TOKENS_AT_LEAST, max_tokens_per_second
from workbench.models.whisper.loading.checkpoint import check_files
from workbench.models.whisper.loading.tokens import added_words

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

log = logging.getLogger("workbench")
EXPORTERS = ("workbench", "optimum")  # of the merged decoder


def export_bundle(
    checkpoint: Path,
    output: Path,
    precisions: list[str],
    name: str = "",
    overwrite: bool = False,
    vocabulary: str = "",
    texts: Sequence[str] = (),
    options: Int8Options = DEFAULTS,
    calibration: Sequence[Wave] = (),
    aligned: Sequence[Utterance] = (),
    through: str = "workbench",
) -> Path:
    """Export a checkpoint folder, of a Whisper or of a model with a CTC head, as a bundle and check its tensors against torch.

    Args:
        checkpoint: a student's or any transformers Whisper folder.
        output: the bundle's folder.
        precisions: names of precisions (export/quantization/precisions.py), the first is the clients' default.
        name: what the bundle is called; the run's or the checkpoint's name by default.
        overwrite: replace a bundle with other content.
        vocabulary: which tokens to keep, as for `vocabulary.choose_tokens`; all by default.
        texts: texts on which the tokens lost with a smaller vocabulary are counted.
        options: options of the quantizers.
        calibration: clips [samples] on which static int8 measures its inputs' ranges.
        aligned: clips with texts on which the heads for word times are chosen; without any, those that the checkpoint names.
        through: exporter of the merged decoder, `workbench` or `optimum`.

    Returns:
        The bundle's folder. One that already holds this export, undamaged, is left as it is.

    Raises:
        UserError: the checkpoint cannot be used, Optimum is requested but cannot be installed, another process writes the bundle, the disk
            is full, or the graphs' outputs differ from torch's.
    """
    from export.assembly.alignment import find_alignment
    from export.bundle.card import write_card
    from export.verification.parity import check_tensors

    parsed = parse_precisions(precisions)
    precisions = [p.name for p in parsed]
    check_exporter(through)
    check_output(output, [checkpoint])
    check_not_run(checkpoint)
    if has_ctc_head(checkpoint):
        from export.assembly.ctc import export_ctc_bundle

        check_has_no_decoder_options(checkpoint, vocabulary, through)
        return export_ctc_bundle(
            checkpoint, output, parsed, name, overwrite, options, _described(options, parsed), calibration
        )
    for precision in parsed:
        check_decoder_scheme(precision)
    check_files(checkpoint)
    origin = find_origin(checkpoint, name)
    source = fingerprint(checkpoint)
    wanted: ExportOptions = {
        "precisions": precisions,
        "vocabulary": vocabulary,
        "int8": _described(options, parsed),
        "through": through,
    }
    if is_current(output, source, wanted, overwrite):
        log.info("%s is up to date", output)
        return output
    check_replaceable(output, BUNDLE)
    with (
        output_lock(output),
        _pruned(checkpoint, vocabulary, texts, output) as (read, lost),
        replacing(output, BUNDLE) as folder,
    ):
        with step("reading %s", checkpoint):
            family = Whisper(read)
            model = family.load()
        _check_sizes(checkpoint, model)
        check_free_space(output.parent, parameters(model) * 3 * (4 + len(parsed)), "the bundle")
        graphs = folder / "onnx"
        graphs.mkdir()
        silence = origin.margin_seconds if origin.length == "true" else WINDOW_SECONDS
        with step("choosing the attention heads for word times"):
            alignment = find_alignment(model, family, aligned, silence)
        heads = alignment["heads"]
        _write_graphs(model, family, origin, graphs, parsed, options, calibration, heads, through)
        write_client_files(read, family, folder, heads)
        content = _manifest(origin, family, model, parsed, source) | {
            "vocabulary": lost,
            "int8": wanted["int8"],
            "through": through,
        }
        content |= {"speech_detector": copy_detector(graphs), "alignment": alignment}
        # what the check reads; checksums are computed once, when all files are final
        write_json(folder / "bundle.json", content)
        with step("checking tensors against torch"):
            content["parity"] = check_tensors(folder, model, family, precisions)
        write_card(folder, content)
        with step("computing checksums"):
            write_manifest(folder, content)
    return output


def check_has_no_decoder_options(checkpoint: Path, vocabulary: str, through: str) -> None:
    """Raise UserError for options that a model with a CTC head does not take."""
    if vocabulary or through != "workbench":
        raise UserError(f"{checkpoint}: has a CTC head and no decoder; leave out --vocabulary and --decoder-exporter")


def check_exporter(through: str) -> None:
    """Raise UserError for an exporter that does not exist or cannot be installed here."""
    if through not in EXPORTERS:
        raise UserError(f"--decoder-exporter {through!r}{did_you_mean(through, EXPORTERS)}")
    if through == "optimum":
        from export.optimum.environment import environment

        environment()


def _check_sizes(checkpoint: Path, model: WhisperForConditionalGeneration) -> None:
    """Raise UserError, before hours of work, for a model whose graphs would not fit an ONNX file; weights in other files are not written."""
    for name, part in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        if (size := 4 * parameters(part)) > LARGEST:
            raise UserError(
                f"{checkpoint}: its {name} takes {size / 1e9:.1f} GB in fp32, from which every bundle is made, and an ONNX file holds at most "
                f"{LARGEST / 1e9:.1f}; export a student with fewer layers"
            )


@contextmanager
def _pruned(
    checkpoint: Path, choice: str, texts: Sequence[str], output: Path
) -> Iterator[tuple[Path, Vocabulary | None]]:
    """The checkpoint to export, and the manifest's `vocabulary` if it is pruned."""
    from export.bundle.vocabulary import choose_tokens, prune, vocabulary_coverage

    if not choice:
        yield checkpoint, None
        return
    family = Whisper(checkpoint)
    kept = choose_tokens(choice, family)
    loss = vocabulary_coverage(kept, family, texts)
    lost: Vocabulary = {"choice": choice, "size": len(kept), "of": family.config.vocab_size, "lost": loss}
    log.info("vocabulary: %s of %s tokens", f"{len(kept):,}", f"{lost['of']:,}")
    if texts:
        log.info(
            "of %d texts %d are tokenized differently now; %s %% of their tokens stay",
            len(texts), loss["texts_changed"], loss["tokens_kept_percent"],
        )  # fmt: skip
    with staging_folder(output) as temporary:
        (temporary / "pruned").mkdir()
        yield prune(checkpoint, kept, temporary / "pruned"), lost


def _described(options: Int8Options, precisions: Sequence[Precision]) -> Int8 | None:
    """The quantizers' options, if any was used."""
    if {s.name for p in precisions for s in (p.encoder, p.decoder)} <= {"fp32", "fp16"}:
        return None
    return {"per_channel": options.per_channel, "reduce_range": options.reduced, "symmetric": options.symmetric}


def _write_graphs(
    model: WhisperForConditionalGeneration, family: Whisper, origin: Origin, folder: Path, precisions: Sequence[Precision],
    options: Int8Options, calibration: Sequence[Wave], heads: list[list[int]], through: str,
) -> None:  # fmt: skip
    from export.graphs.build import export_graphs, margin_frames, write_step
    from export.graphs.lint import lint_graphs
    from export.graphs.names import ENCODER, QUANTIZED, STEP
    from export.quantization.quantize import quantize

    with step("exporting graphs"):
        export_graphs(model, family, folder, margin_frames(origin.length, origin.margin_seconds), heads, through)
    used = {(graph, p.encoder if graph == ENCODER else p.decoder) for p in precisions for graph in QUANTIZED}
    static = any(scheme.name == "int8_static" for _, scheme in used)
    features = calibration_features(origin.checkpoint, calibration) if static else []
    fp32 = Scheme("fp32")
    todo = [(graph, scheme) for graph, scheme in sorted(used, key=str) if scheme != fp32]
    for number, (graph, scheme) in enumerate(todo, 1):
        with step("quantizing, %d of %d: %s in %s", number, len(todo), graph, scheme.label):
            if graph == STEP and scheme.name == "int8":
                # dynamic int8 takes no drafts (docs/decisions/0028-drafts.md) and is faster without what makes them exact
                with TemporaryDirectory(dir=folder) as temporary:
                    source = write_step(model, family, Path(temporary), heads, exact=False)
                    quantized = quantize(source, scheme, options)
                    quantized.replace(folder / quantized.name)
                continue
            quantize(folder / graph, scheme, options, features)
    for graph in QUANTIZED:
        if (graph, fp32) not in used:
            (folder / graph).unlink()
    with step("checking the graphs"):
        lint_graphs(folder)


def calibration_features(checkpoint: Path, waves: Sequence[Wave]) -> list[npt.NDArray[np.float32]]:
    """Encoder inputs for some clips [samples], at the length that it reads. -> each [1, mels, frames]"""
    family, origin = Whisper(checkpoint), find_origin(checkpoint)
    seconds = [
        WINDOW_SECONDS if origin.length == "padded" else len(w) / SAMPLE_RATE + origin.margin_seconds for w in waves
    ]
    return [family.features([wave], length).numpy() for wave, length in zip(waves, seconds, strict=True)]


def _manifest(
    origin: Origin,
    family: Whisper,
    model: WhisperForConditionalGeneration,
    precisions: Sequence[Precision],
    source: str,
) -> Content:
    from export.graphs.names import DECODER, ENCODER, FRONTEND, SHERPA, STEP

    languages = sorted(family.language_ids or ["en"])
    return {
        "format": FORMAT,
        "workbench": __version__,
        "exporter": exporter_fingerprint(),
        "name": origin.name,
        "family": family.name,
        "licence": "that of the teacher's weights; see MODEL_CARD.md",
        "checkpoint_sha256": source,
        "parameters": parameters(model),
        "length": origin.length,
        "margin_seconds": origin.margin_seconds,
        "window_seconds": WINDOW_SECONDS,
        "sample_rate": 16_000,
        "precisions": {
            precision.name: {
                "frontend": f"onnx/{FRONTEND}",
                "encoder": f"onnx/{precision.encoder.file(ENCODER)}",
                "step": f"onnx/{precision.decoder.file(STEP)}",
                "decoder": f"onnx/{precision.decoder.file(DECODER)}",
                "sherpa": f"onnx/{precision.decoder.file(SHERPA)}",
            }
            for precision in precisions
        },
        "tokens": {
            "prompts": {language: family.prompt(language) for language in languages},
            "end": family.eos_token_id,
            "added": {str(i): word for i, word in sorted(added_words(family.tokenizer).items())},
        },
        "decoding": {
            "tokens_at_least": TOKENS_AT_LEAST,
            "tokens_per_second": MAX_TOKENS_PER_SECOND,
            "tokens_per_second_of": {
                language: rate
                for language in languages
                if (rate := max_tokens_per_second(language)) != MAX_TOKENS_PER_SECOND
            },
            "most_tokens": family.most_tokens,
        },
        "run": origin.run,
        "host": describe_host(),
        "files": {},
    }
