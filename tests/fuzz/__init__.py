"""Seeded generators of what programs may be given, and what has to become of it."""
