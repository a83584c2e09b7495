"""A bundle on the device: checked file by file, put on an engine, tested against its golden answers.

    bundle = read_bundle("wrn40_2.bundle")
    engine = open_engine(bundle, "onnxruntime")
    self_test(bundle, engine)

Nothing here unpickles, or imports onnx, the exporter, or torch where another engine serves. What is wrong with a
bundle is a `BundleError`.
"""

from edgetta.bundle.engines import engine_name, open_engine, processor_engines
from edgetta.bundle.reading import Bundle, read_bundle
from edgetta.bundle.self_testing import SelfTest, self_test

__all__ = [
    "Bundle",
    "SelfTest",
    "engine_name",
    "open_engine",
    "processor_engines",
    "read_bundle",
    "self_test",
]
