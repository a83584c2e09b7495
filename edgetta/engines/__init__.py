"""Whole-network programs over plain arrays, and the engines that run them."""
