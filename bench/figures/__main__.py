"""`python -m edgetta.bench.figures [ROOT]`: write the figures in all pages anew."""

import sys
from pathlib import Path

from edgetta.bench.figures.pages import write_figures

for path in write_figures(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
    print(f"wrote {path}")
