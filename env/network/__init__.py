"""An environment in another process or on another machine (suite ``remote``).

``tools/serve_env.py`` offers it there; the trainer connects to it.
"""
