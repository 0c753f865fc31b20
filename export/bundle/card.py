"""MODEL_CARD.md of a bundle: what it is, what it scored, how to run it in each client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.bundle.ctc import runtimes_of
from export.edge.bundle.content import Content, Measurement, Verification
from export.edge.bundle.fields import CTC
from workbench.core.files import write_text

CARD = "MODEL_CARD.md"
OPTIMUM = """Optimum, in a separate environment, because its ONNX package requires transformers below 4.58:

    python -m venv ~/optimum-onnx
    ~/optimum-onnx/bin/pip install 'optimum-onnx[onnxruntime]==0.1.0'
"""


def card(content: Content) -> str:
    """The card, made from the manifest's content alone."""
    return "\n\n".join(_sections(content)) + "\n"


def write_card(folder: Path, content: Content) -> None:
    """Write the card from the manifest's content."""
    write_text(folder / CARD, card(content))


def _sections(content: Content) -> list[str]:
    run = content.get("run") or {}
    teacher = (run.get("teacher") or {}).get("name")
    origin = f"a student of `{teacher}`" if teacher else "an export of the unchanged checkpoint"
    length = (
        f"Reads a clip at its own length plus {content['margin_seconds']} s of silence (length-adaptive), up to 30 s."
        if content["length"] == "true"
        else "Reads every clip padded to 30 s, as stock Whisper does."
    )
    sections = [
        f"# {content['name']}",
        f"Speech recognition, {'an encoder with a CTC head' if content['family'] == CTC else 'Whisper family'}, {content['parameters'] / 1e6:.1f} M parameters; {origin}. {length}",
        f"Exported by distill-workbench {content['workbench']}. The weights derive from the teacher's, and so does their licence: keep its notice. Checksums of every file are in bundle.json.",
    ]
    if vocabulary := content.get("vocabulary"):
        sections.append(
            f"Knows {vocabulary['size']:,} of its tokenizer's {vocabulary['of']:,} tokens (`--vocabulary {vocabulary['choice']}`), "
            "renumbered; any text can still be written."
        )
    if run.get("validation"):
        sections.append(f"Validation WER after training: {run['validation']['wer']} %.")
    if measurement := content.get("measurement"):
        sections.append(_table("Measured", measurement))
        sections += [
            _table("Measured on another corpus", {**measurement, **other})
            for other in measurement.get("other_corpora", [])
        ]
    if verification := content.get("verification"):
        sections.append(_verified(verification))
    return [*sections, _usage(content)]


def _table(title: str, measurement: Measurement) -> str:
    corpus = measurement["corpus"]
    rate = corpus.get("headline", "wer")  # bundles of earlier versions say neither this nor the next two
    rows = "\n".join(
        f"| {s['precision']} | {s['cer'] if rate == 'cer' else s['wer']:.2f} | {s['latency_ms']['p50']:.0f} | {s['latency_ms']['p95']:.0f} | {s['size_mb']:.0f} | {s['peak_rss_mb']:.0f} |"
        for s in measurement["systems"]
    )
    host = measurement["host"]
    told = {
        True: "It was trained on other clips of this corpus.",
        False: "It was not trained on this corpus.",
        None: "",
    }
    normalizers = ", ".join(corpus.get("normalizers", {"": "Whisper's"}).values())
    return (
        f"## {title}\n\n{corpus['name']}, {corpus['split']}: {corpus['clips']} clips. {told[corpus.get('trained_on')]} "
        f"Normalizer: {normalizers}. {host['cpu']}, {measurement['threads']} threads.\n\n"
        f"| precision | {rate.upper()} % | p50 ms | p95 ms | MB | peak RSS MB |\n|---|---|---|---|---|---|\n{rows}"
    )


def _verified(verification: Verification) -> str:
    rows = "\n".join(
        f"| {c['client']} {c['version']} | {c['precision']} | {'pass' if c['passed'] else 'FAIL' if c['required'] else 'over the WER budget'} | {c['tokens_equal']} | {c['wer']} | {c['wer_torch']} |"
        for c in verification["clients"]
    )
    return f"## Verified in\n\n| client | precision | result | clips with equal tokens | WER % | in torch |\n|---|---|---|---|---|---|\n{rows}"


def _detector(content: Content) -> str:
    """What our own runtime does where there is no speech."""
    if not content.get("speech_detector"):
        return "Without a speech detector: it may hallucinate text where there is only silence or noise, and takes clips of up to 30 s."
    return "Clips in which its speech detector finds no speech give no text; `--no-vad` turns that off. The other runtimes have no detector: they may hallucinate text where there is only silence or noise."


def _usage(content: Content) -> str:
    """How each runtime is called from the bundle's folder; for a packed bundle, only the runtime that it is for."""
    precision, packed = list(content["precisions"])[-1], content.get("packed_for", "")
    asked = ', language="en", task="transcribe"' if len(content["tokens"]["prompts"]) > 1 else ""
    all_of_them = {
        "edge": f"""Without torch (numpy and onnxruntime):

    pip install -r edge/requirements.txt
    python -B -m edge --precision {precision} speech.wav

{_detector(content)}""",
        "onnx_asr": """onnx-asr:

    import onnx_asr
    print(onnx_asr.load_model("whisper", ".").recognize("speech.wav"))""",
        "sherpa_onnx": """sherpa-onnx, whose frames lie half a hop (80 samples) later than Whisper's unless that much is prepended:

    import numpy as np
    import sherpa_onnx
    from edge import read_wav
    recognizer = sherpa_onnx.OfflineRecognizer.from_whisper(
        "onnx/encoder_model.onnx", "onnx/sherpa_decoder.onnx", "tokens.txt", language="en")
    stream, wave = recognizer.create_stream(), read_wav("speech.wav")
    stream.accept_waveform(16_000, np.concatenate([wave[80:0:-1], wave]))
    recognizer.decode_stream(stream)
    print(stream.result.text)""",
        "optimum": f"""{OPTIMUM}
Then, in `~/optimum-onnx/bin/python`:

    from edge import read_wav
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import AutoProcessor, GenerationConfig
    model = ORTModelForSpeechSeq2Seq.from_pretrained(
        ".", subfolder="onnx", generation_config=GenerationConfig.from_pretrained("."))
    processor = AutoProcessor.from_pretrained(".")
    inputs = processor(read_wav("speech.wav"), sampling_rate=16_000, return_tensors="pt")
    ids = model.generate(inputs.input_features{asked})
    print(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())""",
        "transformers_js": """transformers.js, with this folder inside the current one:

    import { pipeline } from "@huggingface/transformers";
    const transcribe = await pipeline("automatic-speech-recognition", FOLDER, { dtype: "fp32" });
    console.log((await transcribe(samples)).text);  // Float32Array at 16 kHz""",
    }
    if content["family"] == CTC:
        all_of_them = _ctc_usage(content, all_of_them)
    if packed:
        said = f"Packed for {packed} in {precision}; the graphs have the default names that runtimes look for (`dtype: fp32` in transformers.js)."
        return f"## Use\n\n{said}\n\n{all_of_them[packed.removesuffix('_30s')]}"
    part = (
        f"`workbench pack . -o FOLDER --for RUNTIME --precision {precision}` makes a folder with what one runtime needs"
    )
    if "fp32" not in content["precisions"]:  # they look for names that are not here
        return f"## Use\n\n{part}, whose model card says how to call it.\n\n{all_of_them['edge']}"
    said = f"Run from this folder. Each reads fp32 here; {part} in another precision."
    return "\n\n".join(["## Use", said, *all_of_them.values()])


def _ctc_usage(content: Content, others: Mapping[str, str]) -> dict[str, str]:
    """How a model with a CTC head is called in each runtime that reads it."""
    known = {
        **others,
        "sherpa_onnx": """sherpa-onnx, which normalises the wave as the model expects:

    import sherpa_onnx
    from edge import read_wav
    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc("onnx/model.onnx", "tokens.txt")
    stream = recognizer.create_stream()
    stream.accept_waveform(16_000, read_wav("speech.wav"))
    recognizer.decode_stream(stream)
    print(stream.result.text)""",
        "optimum": f"""{OPTIMUM}
Then, in `~/optimum-onnx/bin/python`, one clip at a time:

    from edge import read_wav
    from optimum.onnxruntime import ORTModelForCTC
    from transformers import Wav2Vec2Processor
    model = ORTModelForCTC.from_pretrained(".", subfolder="onnx", file_name="model.onnx")
    processor = Wav2Vec2Processor.from_pretrained(".")
    inputs = processor(read_wav("speech.wav"), sampling_rate=16_000, return_tensors="pt")
    print(processor.batch_decode(model(inputs.input_values).logits.argmax(-1))[0])""",
    }
    runtimes = runtimes_of(content)
    return {name: said for name, said in known.items() if name in runtimes}
