"""A checkpoint's ONNX graphs: written node by node, edited and checked."""
