"""Names of the graphs of a bundle."""

# File names of the fp32 graphs, the ones runtimes look for first, by their part in a manifest.
GRAPH_FILES = {
    "frontend": "frontend.onnx", "encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx",
    "step": "step_decoder.onnx", "sherpa": "sherpa_decoder.onnx", "ctc": "model.onnx",
}  # fmt: skip
FRONTEND, ENCODER, DECODER, STEP, SHERPA, CTC = (
    GRAPH_FILES[p] for p in ("frontend", "encoder", "decoder", "step", "sherpa", "ctc")
)
QUANTIZED = (ENCODER, DECODER, STEP, SHERPA)
IN_FP32 = "frontend."  # begins the names of nodes that stay in fp32 in every precision: features, whose sums of squares overflow fp16
