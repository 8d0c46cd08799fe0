"""Policies that learn the distribution of actions by carrying noise to it."""
