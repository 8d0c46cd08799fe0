"""Meta-World (metaworld 3.1.1): ``env.py`` the environment, ``expert.py`` the scripted policies."""
