"""From waves to tokens: onnxruntime's sessions, the model's graphs, greedy and beam search."""
