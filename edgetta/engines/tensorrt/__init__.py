"""The TensorRT engine: built on the device from a bundle's ONNX files, cached, tested, and run on torch's CUDA memory.

`library.py` finds TensorRT, `half.py` (with `../onnx_model.py`) prepares what it parses, `build.py` builds one engine,
`cache.py` keeps it, `engine.py` runs it as a `contract.Segment`.
"""
