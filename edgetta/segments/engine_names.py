"""The engines by name: static, so that the command line knows them without importing torch."""

ENGINES = {
    "torch": "torch on the processor: needs no other package",
    "torch-cuda": "torch on an NVIDIA GPU",
    "onnxruntime": "ONNX Runtime on the processor",
    "onnxruntime-cuda": "ONNX Runtime on an NVIDIA GPU",
    "onnxruntime-tensorrt": "ONNX Runtime's TensorRT provider, which builds its own engines at the start",
    "tensorrt": "TensorRT; `edgetta build` makes its engines",
}
