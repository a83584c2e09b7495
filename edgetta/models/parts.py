"""Where the built-in networks are cut: lists of module names, shallow layers finer (EcoTTA, section 3.1 and table 13).

A cut list has one name more than there are parts: the end of the stem, then the end of every part. Stem and
classifier stay frozen and outside the parts: the stem is what runs up to and including the first name, the classifier
what follows the last. Published: WRN-40-2 and WRN-28-10. ResNet-50 is inferred from the published memory figures. All
others follow the same rule: a part is a stage, and for more parts the shallowest stages are halved first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetta.errors import UsageError


@dataclass(frozen=True)
class PublishedParts:
    """The places where one network may be cut between blocks, and the splits that the papers give."""

    stem: str  # module that ends the stem
    stages: tuple[tuple[str, ...], ...]  # block names, stage by stage
    kernel: int = 3  # meta-network convolution: 3 for basic blocks, 1 for bottlenecks
    splits: Mapping[int, tuple[int, ...]] = field(
        default_factory=dict
    )  # parts -> blocks per part, where a paper gives it
    inferred: frozenset[int] = frozenset()  # splits that are deduced rather than printed
    default: int = 4  # parts when nobody says

    @property
    def blocks(self) -> tuple[str, ...]:
        """Every block, shallow to deep."""
        return tuple(name for names in self.stages for name in names)

    def split(self, parts: int | None = None) -> tuple[int, ...]:
        """Blocks per part, shallow to deep. UsageError unless 1 <= parts <= number of blocks."""
        parts = min(self.default, len(self.blocks)) if parts is None else parts
        if not 1 <= parts <= len(self.blocks):
            raise UsageError(
                f"{parts} parts: this network has {len(self.blocks)} blocks, so 1 to {len(self.blocks)} parts"
            )
        return self.splits[parts] if parts in self.splits else _halve_the_shallow([len(s) for s in self.stages], parts)

    def cuts(self, parts: int | None = None) -> tuple[str, ...]:
        """The stem's end and every part's end, `parts` + 1 module names."""
        names, position, blocks = [self.stem], 0, self.blocks
        for count in self.split(parts):
            position += count
            names.append(blocks[position - 1])
        return tuple(names)


def numbered(*stages: tuple[str, int]) -> tuple[tuple[str, ...], ...]:
    """`numbered(("layer1", 2), ("layer2", 1))` -> (("layer1.0", "layer1.1"), ("layer2.0",))."""
    return tuple(tuple(f"{prefix}.{index}" for index in range(count)) for prefix, count in stages)


def _halve_the_shallow(stages: list[int], parts: int) -> tuple[int, ...]:
    """Stage sizes -> blocks per part: merge the deepest stages, or halve within the stage with the fewest pieces so
    far, the shallowest of equals first. Gives the published splits of the wide ResNets."""
    pieces = [[count] for count in stages]
    while sum(len(p) for p in pieces) > parts:
        if len(pieces) > 1:
            deepest, before = pieces.pop(), pieces.pop()
            pieces.append([before[0] + deepest[0]])
    while sum(len(p) for p in pieces) < parts:
        fewest = min(len(p) for p in pieces if max(p) > 1)
        stage = next(p for p in pieces if len(p) == fewest and max(p) > 1)
        largest = stage.index(max(stage))
        size = stage[largest]
        stage[largest : largest + 1] = [size // 2, size - size // 2]
    return tuple(size for stage in pieces for size in stage)
