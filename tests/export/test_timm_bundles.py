"""Networks of timm, from their name to a bundle that adapts on every engine; `recompute` where attention or LayerNorm
would keep whole activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.exactness.networks import NETWORKS
from edgetta.bundle import read_bundle
from edgetta.export.bundle_writer import write_bundle
from edgetta.export.recipe import derive_recipe
from edgetta.offline.source_statistics import set_source_statistics
from edgetta.runtime import Runtime
from tests.small_bundle import ENGINES


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("timm:")])
def test_cut_exported_and_run(name: str, tmp_path: Path) -> None:
    derived = derive_recipe(NETWORKS[name])
    network = derived.network()
    set_source_statistics(network, None, derived.model.input_shape)
    write_bundle(tmp_path / "bundle", derived.adaptable, network, name=name, config=AdaptConfig())
    bundle = read_bundle(tmp_path / "bundle")
    images = torch.rand(16, *derived.model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = derived.model.module(images)
    # Without the regulariser: at the identity start its signs are those of rounding errors. The rate makes the update
    # larger than the rounding of the weights.
    config = AdaptConfig(learning_rate=1.0, entropy_margin=1.0, regulariser=0.0)
    ends = []
    for engine in ENGINES:
        runtime = Runtime(bundle, engine, config)
        start = weights(runtime)
        assert torch.allclose(runtime.source(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        result = runtime.step(images)
        assert result.adapted and result.kept == 16
        ends.append(weights(runtime))
        if name.startswith(("timm:convnext", "timm:vit")):
            assert {part.gradient for part in runtime.network.parts} == {"recompute"}
    moved = (ends[0] - start).norm()
    assert moved > 0 and (ends[0] - ends[1]).norm() / moved < 1e-2


def weights(runtime: Runtime) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in runtime.network.parameters()])
