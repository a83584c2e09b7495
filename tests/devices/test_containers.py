"""The container recipes: what can be known of them without building them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetta.devices.doctor import CONTAINERS
from edgetta.devices.profile import profiles

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / CONTAINERS
RECIPES = sorted(path.name for path in FOLDER.glob("*.Dockerfile"))
OF_JETPACK = {"4": "cpu", "5": "cpu", "6": "jetpack6", "7": "jetpack7"}


def instructions(name: str) -> list[str]:
    """Instructions of a recipe, each with its continuation lines, without comments."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line.strip()]


def test_every_jetpack_has_a_recipe() -> None:
    majors = {release.release.split(".")[0] for profile in profiles().values() for release in profile.jetpacks}
    assert majors == set(OF_JETPACK)
    assert sorted({f"{name}.Dockerfile" for name in OF_JETPACK.values()}) == RECIPES
    page = (ROOT / "devices" / "README.md").read_text()
    assert all(name in page for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    steps = instructions(name)
    words = [step.split()[0] for step in steps]
    assert set(words) <= {"FROM", "ARG", "ADD", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    base = next(step for step in steps if step.startswith("FROM"))
    assert ":" in base and "latest" not in base, "a base that moves is no recipe"
    assert 'ENTRYPOINT ["edgetta"]' in steps and 'CMD ["doctor"]' in steps
    assert words.index("USER") < words.index("ENTRYPOINT"), "not as root"
    # Torch comes before edgetta, or pip would bring the one of PyPI, which no Jetson's GPU runs with.
    if "pytorch" not in base:
        torch = next(number for number, step in enumerate(steps) if "torch" in step.lower() and "pip" in step)
        assert torch < next(number for number, step in enumerate(steps) if step.startswith("COPY edgetta"))
    text = (FOLDER / name).read_text()
    assert "Not built or run" in text or "not built or run" in text, "say so until somebody has"
