"""Every timm network of the benchmarks as a bundle: cut, exported, read back, self-tested, adapted on the engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.exactness.networks import NETWORKS
from edgetta.bundle import read_bundle
from edgetta.export.bundle_writer import Shipment, write_bundle
from edgetta.export.recipe import derive_recipe
from edgetta.offline.source_statistics import with_source_statistics
from edgetta.runtime import Runtime
from tests.small_bundle import ENGINES


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("timm:")])
def test_cut_exported_and_run(name: str, tmp_path: Path) -> None:
    derived = derive_recipe(NETWORKS[name])
    adaptable = derived.adaptable
    programs = with_source_statistics(derived.network(), None).programs
    shipment = Shipment(programs, adaptable.cuts, adaptable.batch_norm)
    write_bundle(tmp_path / "bundle", shipment, name=name, config=AdaptConfig())
    bundle = read_bundle(tmp_path / "bundle")
    images = torch.rand(16, *derived.model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = derived.model.module(images).numpy()
    # Without the regulariser: at the identity start its signs are those of rounding errors. The rate makes the update
    # larger than the rounding of the weights.
    config = AdaptConfig(learning_rate=1.0, entropy_margin=1.0, regulariser=0.0, when="every 1", hold_back=False)
    ends = []
    for engine in ENGINES:
        runtime = Runtime(bundle, engine, config)
        start = np.array(runtime.adapter.state.parameters)
        assert np.allclose(runtime.source(images.numpy()), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
        assert runtime.step(images.numpy()).adapted
        ends.append(np.array(runtime.adapter.state.parameters))
    moved = np.linalg.norm(ends[0] - start)
    assert moved > 0 and np.linalg.norm(ends[0] - ends[1]) / moved < 1e-2
