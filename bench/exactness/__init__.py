"""Exactness: derived gradients of whole networks against torch.autograd in float64, per part, policy and engine.

| file | concept |
|---|---|
| `reference.py` | what autograd makes of the module itself; shares no code with the derivation |
| `segments.py` | the derived graphs of every part, on an engine, with imposed masks or their own |
| `measurement.py` | the errors of one network, as rows, and how large they may be |
| `networks.py` | the networks of the matrix |
| `command.py` | `edgetta bench exactness` |
"""
