"""A run's configuration, and how its policies and its agent are built and loaded."""
