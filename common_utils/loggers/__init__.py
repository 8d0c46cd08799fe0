"""Where a run's numbers go besides ``metrics.jsonl``: one file per logger, and a table of them."""
