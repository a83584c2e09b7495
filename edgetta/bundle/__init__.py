"""A bundle on the device: checked file by file, put on an engine, tested against its golden answers.

    bundle = read_bundle("wrn40_2.bundle")
    network = build_network(bundle, engine="onnxruntime")
    self_test(bundle, network)

Nothing here unpickles, imports onnx or imports the exporter. What is wrong with a bundle is a `BundleError`.
"""

from edgetta.bundle.engines import (
    Engine,
    build_network,
    engine_name,
    engine_of,
    open_engine,
    processor_engines,
    source_program,
)
from edgetta.bundle.reading import Bundle, read_bundle
from edgetta.bundle.self_testing import SelfTest, self_test

__all__ = [
    "Bundle",
    "Engine",
    "SelfTest",
    "build_network",
    "engine_name",
    "engine_of",
    "open_engine",
    "processor_engines",
    "read_bundle",
    "self_test",
    "source_program",
]
