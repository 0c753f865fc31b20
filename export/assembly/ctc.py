"""Write the bundle of a model with a CTC head: one graph for each precision, and the files that runtimes read beside it (docs/ctc.md)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from export.assembly.current import ExportOptions, exporter_fingerprint, is_current
from export.assembly.detector import copy_detector
from export.assembly.origin import Origin, find_origin
from export.bundle.card import write_card
from export.bundle.ctc import PIECES, runtimes_of
from export.bundle.inspection import OWN_RUNTIME
from export.bundle.manifest import BUNDLE, write_manifest
from export.edge.bundle.content import Content, Int8
from export.edge.bundle.fields import CTC as FAMILY
from export.edge.bundle.manifest import FORMAT
from export.graphs.ctc import check_architecture, ctc_graph
from export.graphs.lint import LARGEST, lint_graphs
from export.graphs.names import CTC
from export.quantization.int8 import Int8Options
from export.quantization.precisions import Precision
from export.quantization.quantize import quantize
from workbench import __version__
from workbench.audio.decode import Wave
from workbench.config.recipe import load_recipe
from workbench.config.schemes import CALLED_TYPES, Scheme
from workbench.core.disk import check_free_space
from workbench.core.errors import UserError
from workbench.core.files import read_object, write_json, write_text
from workbench.core.locks import output_lock
from workbench.core.machine.host import describe_host
from workbench.core.ownership import check_replaceable, replacing
from workbench.core.progress import step
from workbench.corpus import open_corpus
from workbench.models import open_family
from workbench.models.ctc.family import CtcFamily
from workbench.models.ctc.parakeet_model import MODEL_TYPE as PARAKEET
from workbench.models.ctc.tokens import DELIMITER, VOCABULARY, CtcTokens, byte_signs
from workbench.models.resolve import fingerprint
from workbench.models.students import parameters
from workbench.text.languages import whisper_codes

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("workbench")
BLANKS = ("<blk>", "<eps>", "<blank>")  # names that sherpa-onnx takes for the blank
# a Whisper's encoder has no class of its own in transformers, transformers.js does not read WavLM, and a Parakeet's graph reads waves:
# their graphs are called as wav2vec2's is
CALLED_AS: dict[str, Any] = {"model_type": CALLED_TYPES[0], "architectures": ["Wav2Vec2ForCTC"]}


def export_ctc_bundle(
    checkpoint: Path,
    output: Path,
    precisions: Sequence[Precision],
    name: str,
    overwrite: bool,
    options: Int8Options,
    int8: Int8 | None,
    calibration: Sequence[Wave] = (),
) -> Path:
    """Export a checkpoint with a CTC head as a bundle, and check its logits against torch's.

    Args:
        checkpoint: the checkpoint's folder.
        output: the bundle's folder.
        precisions: the first is the clients' default.
        name: what the bundle is called; the run's or the checkpoint's name by default.
        overwrite: replace a bundle with other content.
        options: options of the quantizers.
        int8: the same as the manifest describes them.
        calibration: clips [samples] on which static int8 measures its inputs' ranges.

    Raises:
        UserError: the checkpoint is of a kind that cannot be exported, a precision has two parts, another process writes the
            bundle, the disk is full, or the graph's output differs from torch's.
    """
    from export.verification.ctc import check_logits

    check_precisions(precisions)
    found = open_family(checkpoint)
    assert isinstance(found, CtcFamily)  # noqa: S101  the caller has looked
    family = found
    check_architecture(family)
    check_spellings(family.ctc_tokens)
    origin = find_origin(checkpoint, name)
    source = fingerprint(checkpoint)
    names = [precision.name for precision in precisions]
    wanted: ExportOptions = {"precisions": names, "vocabulary": "", "int8": int8, "through": "workbench"}
    if is_current(output, source, wanted, overwrite):
        log.info("%s is up to date", output)
        return output
    check_replaceable(output, BUNDLE)
    with output_lock(output), replacing(output, BUNDLE) as folder:
        with step("reading %s", checkpoint):
            model = family.load()
        if (size := 4 * parameters(model)) > LARGEST:
            raise UserError(
                f"{checkpoint}: takes {size / 1e9:.1f} GB in fp32, and an ONNX file holds at most {LARGEST / 1e9:.1f}"
            )
        check_free_space(output.parent, parameters(model) * 2 * (4 + len(precisions)), "the bundle")
        graphs = folder / "onnx"
        graphs.mkdir()
        content = _manifest(origin, family, model, precisions, source) | {"int8": int8, "through": "workbench"}
        runtimes = runtimes_of(content)
        _write_graphs(model, family, graphs, precisions, options, runtimes, calibration)
        _write_client_files(family, folder, runtimes)
        content |= {"speech_detector": copy_detector(graphs)}
        write_json(folder / "bundle.json", content)  # what the check reads
        with step("checking logits against torch"):
            content["parity"] = check_logits(folder, model, family, names)
        write_card(folder, content)
        with step("computing checksums"):
            write_manifest(folder, content)
    return output


def check_precisions(precisions: Sequence[Precision]) -> None:
    """Raise UserError for a precision of two parts: there is one graph."""
    for precision in precisions:
        if precision.encoder != precision.decoder:
            raise UserError(
                f"--precision {precision.name!r}: a model with a CTC head is one graph; expected one scheme, such as {precision.encoder.label}"
            )


def _write_graphs(
    model: nn.Module, family: CtcFamily, folder: Path, precisions: Sequence[Precision], options: Int8Options, runtimes: set[str],
    calibration: Sequence[Wave],
) -> None:  # fmt: skip
    with step("exporting the graph"):
        graph = ctc_graph(model, family)
        if "sherpa_onnx" in runtimes:
            onnx.helper.set_model_props(
                graph, {"model_type": "omnilingual-asr", "vocab_size": str(family.vocabulary_size)}
            )
        onnx.save(graph, folder / CTC)
    fp32 = Scheme("fp32")
    for precision in precisions:
        if precision.encoder != fp32:
            with step("quantizing: %s", precision.name):
                clips = [wave[None] for wave in calibration] if precision.encoder.name == "int8_static" else []
                quantize(folder / CTC, precision.encoder, options, clips)
    if not any(precision.encoder == fp32 for precision in precisions):
        (folder / CTC).unlink()
    with step("checking the graphs"):
        lint_graphs(folder)


def _write_client_files(family: CtcFamily, folder: Path, runtimes: set[str]) -> None:
    tokens = family.ctc_tokens
    signs = byte_signs()
    pieces = {"".join(signs[byte] for byte in piece): i for i, piece in enumerate(tokens.pieces) if piece}
    write_json(folder / PIECES, pieces)
    shutil.copytree(OWN_RUNTIME, folder / "edge", ignore=shutil.ignore_patterns("__pycache__"))
    write_json(folder / "config.json", _config(family))
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000, "padding_value": 0.0,
                "do_normalize": False, "return_attention_mask": False}  # fmt: skip  # the graph normalises
    write_json(folder / "preprocessor_config.json", settings)
    if "optimum" in runtimes:
        _write_tokenizer(family, folder)
    if "sherpa_onnx" in runtimes:
        shown = [("\u2581" if tokens.pieces[i] == b" " else name or f"<{i}>", i) for i, name in enumerate(tokens.names)]
        write_text(folder / "tokens.txt", "".join(f"{name} {i}\n" for name, i in shown))


def _config(family: CtcFamily) -> dict[str, Any]:
    """What Hugging Face's runtimes read of a model before they call its graph."""
    if family.reads_waves:
        values = read_object(family.folder / "config.json", "a checkpoint's configuration")
        return values if values["model_type"] in CALLED_TYPES else values | CALLED_AS
    config = family.config
    if config.model_type == PARAKEET:
        kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_mel_bins", "conv_kernel_size",
                "subsampling_factor", "subsampling_conv_channels")  # fmt: skip
        inside = {key: getattr(config.encoder_config, key) for key in kept}
        return {**CALLED_AS, **inside, "vocab_size": family.vocabulary_size, "pad_token_id": family.ctc_tokens.blank}
    sizes = {
        "hidden_size": config.d_model, "num_hidden_layers": config.encoder_layers, "num_attention_heads": config.encoder_attention_heads,
        "intermediate_size": config.encoder_ffn_dim, "num_mel_bins": config.num_mel_bins, "vocab_size": family.vocabulary_size,
        "pad_token_id": family.ctc_tokens.blank,
    }  # fmt: skip
    return {**CALLED_AS, **sizes}


def _write_tokenizer(family: CtcFamily, folder: Path) -> None:
    """The vocabulary as Hugging Face's tokenizers read it, in Python and in JavaScript."""
    tokens = family.ctc_tokens
    write_json(folder / VOCABULARY, tokens.by_name())
    blank = tokens.names[tokens.blank]
    delimiter = next(name for name, piece in zip(tokens.names, tokens.pieces, strict=True) if piece == b" ")
    special = sorted({i for i, piece in enumerate(tokens.pieces) if not piece and tokens.names[i]} - {tokens.blank})
    named = {"pad": blank, "unk": blank, "bos": None, "eos": None}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": delimiter,
            **{f"{name}_token": token for name, token in named.items()},
        },
    )
    added = [
        {
            "id": i,
            "content": tokens.names[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in special  # not the blank: a special token is left out before repetitions are, and would not keep them apart
    ]
    # CTC's own clean-up would also join what looks like English contractions
    spaces = {"type": "Replace", "pattern": {"String": delimiter}, "content": " "}
    ctc = {"type": "CTC", "pad_token": blank, "word_delimiter_token": delimiter, "cleanup": False}
    decoder = {"type": "Sequence", "decoders": [ctc, spaces]}
    splitter = {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False}
    write_json(
        folder / "tokenizer.json",
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": splitter,
         "post_processor": None, "decoder": decoder,
         "model": {"type": "WordLevel", "vocab": tokens.by_name(), "unk_token": blank}},
    )  # fmt: skip


def _manifest(
    origin: Origin, family: CtcFamily, model: nn.Module, precisions: Sequence[Precision], source: str
) -> Content:
    blank, window = family.ctc_tokens.blank, family.window_seconds
    positions = family.positions(round(window * 16_000))
    return {
        "format": FORMAT,
        "workbench": __version__,
        "exporter": exporter_fingerprint(),
        "name": origin.name,
        "family": FAMILY,
        "licence": "that of the teacher's weights; see MODEL_CARD.md",
        "checkpoint_sha256": source,
        "parameters": parameters(model),
        "length": "true",
        "margin_seconds": family.silence,
        "window_seconds": window,
        "sample_rate": 16_000,
        "precisions": {precision.name: {"ctc": f"onnx/{precision.encoder.file(CTC)}"} for precision in precisions},
        "tokens": {"prompts": {code: [blank] for code in _languages(origin)}, "end": family.vocabulary_size},
        "ctc": {
            "blank": blank,
            "pieces": PIECES,
            "lower": family.ctc_tokens.lower,
            "units": family.ctc_tokens.units,
            "normalizes": family.normalize,
            "plain": _is_plain(family.ctc_tokens),
        },
        "decoding": {
            "tokens_at_least": 1,
            "tokens_per_second": 16_000 / family.samples_per_position,
            "most_tokens": positions,
        },
        "run": origin.run,
        "host": describe_host(),
        "files": {},
    }


def _is_plain(tokens: CtcTokens) -> bool:
    """Whether the tokenizers of other runtimes spell every token as ours does: they know one token between words, a named blank, and no lower case."""
    spoken = [name for name, piece in zip(tokens.names, tokens.pieces, strict=True) if piece and piece != b" "]
    spaces = sum(piece == b" " for piece in tokens.pieces)
    strange = any(name == DELIMITER or any(char.isspace() for char in name) or name in BLANKS for name in spoken)
    return bool(tokens.names[tokens.blank]) and spaces == 1 and not strange and not tokens.lower


def check_spellings(tokens: CtcTokens) -> None:
    """Raise UserError where two tokens stand for the same text: a text would not say which was written."""
    seen: dict[bytes, int] = {}
    for i, piece in enumerate(tokens.pieces):
        if piece and piece in seen:
            both = f"{tokens.names[seen[piece]]!r} and {tokens.names[i]!r}"
            raise UserError(f"the vocabulary: {both} stand for the same text; such a one is not exported")
        seen[piece] = i


def _languages(origin: Origin) -> list[str]:
    """Languages that a student was trained on; all that have a code where that is not known, so that none is refused."""
    recipe = origin.checkpoint.resolve().parent / "recipe.yaml"
    if recipe.is_file():
        parsed = load_recipe(recipe)
        sources = (parsed.corpus, *parsed.more_corpora)
        try:
            spoken = {clip.language for source in sources for clip in open_corpus(source, "train")}
            return sorted(spoken) or whisper_codes()
        except UserError as error:
            log.warning("the languages of the model are not known, so every language's code is accepted: %s", error)
    return whisper_codes()
