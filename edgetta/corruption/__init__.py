"""Common corruptions of images after Hendrycks and Dietterich (ICLR 2019), seeded per image.

`corrupt(images, "fog", 5)` needs numpy, scipy and Pillow only. `CORRUPTIONS` are the 15 of the benchmark,
`EXTRA_CORRUPTIONS` the 4 kept for validation, `PARAMETERS` the severity tables. `frost_source()` says whether the
frost uses the published photographs or synthetic ice: state it beside every result that includes frost.
"""

from edgetta.corruption.frost_texture import frost_source
from edgetta.corruption.generate import corrupt
from edgetta.corruption.parameters import CORRUPTIONS, EXTRA_CORRUPTIONS, PARAMETERS

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "PARAMETERS", "corrupt", "frost_source"]
