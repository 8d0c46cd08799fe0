"""Meta-World (metaworld 3.1.1): the environment (``env.py``), scripted policies (``expert.py``)."""
