"""Measurements on a GPU: ops on the layers of known networks, and the memory of a training step."""
