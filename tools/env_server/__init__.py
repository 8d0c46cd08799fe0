"""The robot's side of suite ``remote``: offers an environment to a trainer elsewhere.

This folder needs nothing else of this project: copy it to the robot, and run it there with
``python -m env_server --env my_robot:make_env`` (Python 3.8, numpy, msgpack, websockets 13, or
newer). So it packs messages itself, as ``common_utils/wire.py`` does (a test compares the bytes),
and reports its errors itself. In a checkout, ``python -m tools.serve_env`` is the same program.
docs/remote.md describes the protocol.
"""
