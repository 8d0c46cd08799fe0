"""Floor 1: what every other room may use; knows no networks and no simulators."""
