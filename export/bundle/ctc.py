"""Which runtimes read a bundle whose model has a CTC head."""

from __future__ import annotations

from export.edge.bundle.content import Content

READERS = ("edge", "optimum", "transformers_js", "sherpa_onnx")  # runtimes that read some models with a CTC head
PIECES = "pieces.json"  # what our own runtime reads: the bytes that each token stands for


def unread_reason(content: Content, runtime: str) -> str | None:
    """Why a runtime does not read this model; None if it does.

    Hugging Face's have a tokenizer for characters alone. sherpa-onnx normalises the wave, which changes nothing only where the graph does so,
    too, takes token 0 for the blank, and reads names without white space.
    """
    ctc = content["ctc"]
    if runtime == "edge":
        return None
    if runtime not in READERS:
        return "it has no reader of models with a CTC head"
    if ctc.get("units") != "characters":
        return f"it reads vocabularies of characters alone, and this model writes {ctc.get('units')}"
    if not ctc.get("plain"):
        return "its tokenizer would spell some of this vocabulary's tokens otherwise"
    if runtime == "sherpa_onnx" and not ctc.get("normalizes"):
        return "it normalises the wave, and this model expects it as it is"
    if runtime == "sherpa_onnx" and ctc["blank"] != 0:
        return f"it takes token 0 for the blank, which is token {ctc['blank']} here"
    return None


def runtimes_of(content: Content) -> set[str]:
    """Names of the runtimes that read this model."""
    return {name for name in READERS if unread_reason(content, name) is None}
