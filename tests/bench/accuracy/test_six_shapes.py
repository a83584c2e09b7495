"""A network of six drawn shapes: clean frames are in no order worse than the network that was shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from edgetta.bench.accuracy.camera import order_errors, run, snapshot
from edgetta.bench.accuracy.deployed import Deployed, export
from edgetta.bench.accuracy.orders import AFTER, PLAIN, degenerate
from edgetta.bench.baselines import Source
from tests.bench.accuracy import six_shapes

IMAGES, BEFORE = 180, 300
FRAME = 100 / IMAGES
BOUNDS = {"iid": 0.3, "runs": 0.3, "sorted": 0.3, "one-class": 0.5, "two-classes": 0.5, "still": 0.5}  # and a frame


@pytest.fixture(scope="module")
def shapes() -> tuple[np.ndarray, np.ndarray]:
    return six_shapes.draw(IMAGES, 1)


@pytest.fixture(scope="module")
def network() -> six_shapes.ShapeNet:
    return six_shapes.trained(*six_shapes.draw(900, 0))


@pytest.fixture(scope="module")
def bundle(network: six_shapes.ShapeNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    save_file(network.state_dict(), folder / "weights.safetensors")
    images, labels = six_shapes.draw(900, 0)
    np.savez(folder / "source.npz", images=images, labels=labels)
    model = f"{six_shapes.__file__}:build"
    return export(model, folder / "weights.safetensors", str(folder / "source.npz"), folder / "bundle", "24")


@pytest.fixture(scope="module")
def source(network: six_shapes.ShapeNet, shapes: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    return order_errors(Source(network), *shapes, 50, 0)


def test_the_network_knows_its_shapes(source: dict[str, float]) -> None:
    assert source["iid"] < 5


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_clean_frames_are_in_no_order_worse_than_the_source(
    bundle: Path, shapes: tuple[np.ndarray, np.ndarray], source: dict[str, float], batch: int
) -> None:
    found = order_errors(Deployed(bundle), *shapes, batch, 0, PLAIN)
    worse = {
        order: found[order] - source[order] for order in PLAIN if found[order] - source[order] > BOUNDS[order] + FRAME
    }
    assert not worse, f"points above the source: {worse}"


@pytest.mark.parametrize("order", AFTER)
def test_degenerate_frames_leave_nothing_behind(
    bundle: Path, shapes: tuple[np.ndarray, np.ndarray], order: str
) -> None:
    images, labels = shapes
    method, rows = Deployed(bundle), np.arange(96)
    fresh = run(method, images, rows, 16) != labels[:96]
    method.reset()
    frames = degenerate(order, images, labels, 0, BEFORE)
    run(method, frames, np.arange(BEFORE), 16)
    after = run(snapshot(method)(), images, rows, 16) != labels[:96]
    assert after.mean() <= fresh.mean() + 0.011  # one of 96
