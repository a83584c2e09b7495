"""From a torch model to a bundle: trace, cut, derive the input gradient, write ONNX. Runs on the workstation."""
