"""Adaptation on the device: meta-networks beside frozen parts, the objective, and the step that updates them."""
