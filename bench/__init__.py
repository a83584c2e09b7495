"""Measuring: real data, corruptions, baselines, memory, latency and accuracy."""
