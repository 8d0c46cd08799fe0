"""The lowest layer: what every other package may use; no networks and no simulators."""
