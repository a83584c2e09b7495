"""`python -m edgetta` is `edgetta`."""

import sys

from edgetta.cli import main

if __name__ == "__main__":
    sys.exit(main())
