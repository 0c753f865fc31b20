"""Which runtimes read a bundle whose model has a CTC head."""

from __future__ import annotations

from export.edge.bundle.content import Content


def runtimes_of(content: Content) -> set[str]:
    """Names of the runtimes that read this model.

    Hugging Face's have a tokenizer for characters alone. sherpa-onnx normalises the wave, which changes nothing only where the graph does so,
    too, and takes token 0 for the blank.
    """
    ctc = content["ctc"]
    if ctc.get("units") != "characters":
        return {"edge"}
    found = {"edge", "optimum", "transformers_js"}
    return found | {"sherpa_onnx"} if ctc.get("normalizes") and ctc["blank"] == 0 else found
