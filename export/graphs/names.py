"""Names of the graphs of a bundle."""

# File names of the fp32 graphs, the ones runtimes look for first, by their part in a manifest.
GRAPH_FILES = {
    "frontend": "frontend.onnx", "encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx",
    "step": "step_decoder.onnx", "sherpa": "sherpa_decoder.onnx",
}  # fmt: skip
FRONTEND, ENCODER, DECODER, STEP, SHERPA = (
    GRAPH_FILES[p] for p in ("frontend", "encoder", "decoder", "step", "sherpa")
)
QUANTIZED = (ENCODER, DECODER, STEP, SHERPA)
