"""Frozen parts of the backbone: one contract (`contract.py`), one graph format (`graph.py`), one file per engine."""
