"""Damaged bundles and states by the thousand: nothing that reads them crashes, hangs, blows up or shows tracebacks."""
