"""What a run is: its configuration, and how its policies and its agent are built and loaded."""
