"""Balls around images: projection, ascent and starts."""

from __future__ import annotations

import pytest
import torch

from edgetta.errors import UsageError
from edgetta.offline.attack import Threat


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_nearest_point_of_the_ball(norm: str) -> None:
    threat = Threat(norm, 0.3)  # type: ignore[arg-type]
    centres = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)
    points = centres + torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = threat.project(points, centres)
    offset = (found - centres).flatten(1)
    size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert bool((size <= 0.3 + 1e-12).all()) and bool((found >= 0).all()) and bool((found <= 1).all())
    # No point of the ball is nearer: the rest of the way is normal to it.
    random = threat.random_start(centres, torch.Generator().manual_seed(1))
    assert bool((((points - found) * (random - found)).flatten(1).sum(1) <= 1e-9).all())
    torch.testing.assert_close(threat.project(found, centres), found)


def test_points_inside_stay_and_pixels_stay_in_range() -> None:
    threat = Threat("l2", 1.0)
    centres = torch.zeros(1, 3, 2, 2)
    near = centres + 0.1
    assert torch.equal(threat.project(near, centres), near)
    assert bool((threat.project(centres - 1, centres) == 0).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_lie_in_the_ball_and_on_its_surface(norm: str) -> None:
    threat = Threat(norm, 0.1)  # type: ignore[arg-type]
    images = torch.full((50, 3, 4, 4), 0.5)
    generator = torch.Generator().manual_seed(0)
    for start, least in ((threat.random_start, 0.0), (threat.surface_start, 0.0999)):
        offset = (start(images, generator) - images).flatten(1)
        size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
        assert float(size.max()) <= 0.1 + 1e-6 and float(size.min()) >= least
        assert abs(float(offset.mean())) < 0.01
    first = threat.random_start(images, torch.Generator().manual_seed(3))
    assert torch.equal(first, threat.random_start(images, torch.Generator().manual_seed(3)))


def test_what_is_no_threat_is_refused() -> None:
    with pytest.raises(UsageError, match="choose linf or l2"):
        Threat("l1")  # type: ignore[arg-type]
    for epsilon in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive"):
            Threat("linf", epsilon)


def test_it_is_shown_as_papers_write_it() -> None:
    assert str(Threat("linf", 8 / 255)) == "linf 8/255" and str(Threat("l2", 0.5)) == "l2 0.5"
