"""Remote BC policies of a run: from a server's address or a description to a config and a policy.

``bc_policy`` may name, besides weights, a server (``ws://HOST:PORT``, which says itself what its
policy reads, as ``ibrl serve`` does) or a file ``NAME.yaml`` that describes the policy of any
server: a config of a BC policy with ``policy_type: remote`` (docs/deploy.md). Either way the run
keeps the description as ``bc_policy/0/cfg.yaml``, where other policies have their weights as well.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common_utils import run_config
from common_utils.link import Link, LinkLost, is_url
from common_utils.paths import split_paths
from common_utils.run_config import CFG_NAME, ConfigError
from workspace.bc_config import MainConfig

URL_VARIABLE = "IBRL_REMOTE_POLICY"
"""Names the environment variable with the server to ask instead of the one in a checkpoint."""
KIND = "remote"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PATIENCE = 60.0  # seconds for a server to start
_DESCRIBE = "expected a file NAME.yaml that describes its policy (docs/deploy.md)"


def is_remote(path: str | Path) -> bool:
    """Whether ``path`` names a server or a description, rather than weights."""
    return is_url(str(path)) or str(path).endswith(".yaml")


def policy_files(text: str) -> list[str]:
    """The weight files that ``bc_policy`` names, and files with the configs of its remote policies.

    Raises LinkLost if a server that it names is not running.
    """
    return [written_config(p) if is_remote(p) else p for p in split_paths(text)]


@lru_cache
def written_config(source: str) -> str:
    """A remote policy's config as a file ``cfg.yaml``, which this process removes at its end."""
    cfg = config_of_server(source) if is_url(source) else config_of_file(source)
    folder = tempfile.mkdtemp(prefix="ibrl_remote_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run_config.dump(cfg, Path(folder) / CFG_NAME)
    return str(Path(folder) / CFG_NAME)


def config_of_file(path: str) -> MainConfig:
    """The description in a user's file; ConfigError if it is of a policy with weights."""
    if not os.path.isfile(path):
        raise ConfigError(f"bc_policy: no file '{path}'; {_DESCRIBE}")
    cfg = run_config.from_dict(MainConfig, run_config.read_yaml(Path(path)), path)
    require_remote(cfg, path)
    return cfg


def require_remote(cfg: MainConfig, path: str | Path) -> None:
    """Raise ConfigError unless ``cfg`` describes a remote policy completely."""
    if cfg.kind != KIND:
        raise ConfigError(
            f"bc_policy: '{path}' is a config of policy_type {cfg.policy_type}, expected weights "
            f"(.pt), or policy_type {KIND}"
        )
    for name in ("obs_shape", "action_dim"):
        if not getattr(cfg, name):
            raise ConfigError(f"bc_policy: '{path}': {name}: missing, expected what the policy has")


def config_of_server(url: str) -> MainConfig:
    """The config of the policy that runs at ``url``, by its own account."""
    where = f"bc_policy: {url}"
    greeting = _greeting(url)
    try:
        tree = _tree(url, greeting)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"{where}: this server does not say what it reads; {_DESCRIBE}") from None
    return run_config.from_dict(MainConfig, tree, where)


def _greeting(url: str) -> Any:
    """What the server says at first; waits for it to start."""
    deadline, delay = time.monotonic() + PATIENCE, 1.0
    while True:
        link = Link(url, field="bc_policy")
        try:
            return link.connect()
        except LinkLost as error:
            if time.monotonic() + delay > deadline:
                raise
            print(f"{error}; trying again in {delay:g} s", flush=True)
        finally:
            link.close()
        time.sleep(delay)
        delay = min(2 * delay, 10)


def _tree(url: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The config's tree; raises all kinds of errors for what is no greeting of ``ibrl serve``."""
    specs = {str(k): v for k, v in said["observations"].items()}
    shapes = {k: [int(n) for n in v["shape"]] for k, v in specs.items()}
    stacks = {k: int(v["stack"]) for k, v in specs.items()}
    cameras = [key for key, shape in shapes.items() if len(shape) == 3]
    others = specs.keys() - {*cameras, "prop"}
    if others != (set() if cameras else {"state"}):
        raise ConfigError(
            f"bc_policy: {url}: its policy reads {', '.join(specs)}, expected state, or images "
            "with or without prop"
        )
    first = cameras[0] if cameras else "state"
    return {
        "policy_type": KIND,
        KIND: {"url": url, "max_batch": int(said["max_batch"]), "weights": str(said["weights"])},
        "dataset": {
            "use_state": int(not cameras),
            "rl_camera": "+".join(cameras),
            "state_stack": 1 if cameras else stacks[first],
            "obs_stack": stacks[first] if cameras else 1,
            "prop_stack": stacks.get("prop", 1),
            "stack_pad": said["stack_pad"],
        },
        "obs_shape": shapes[first],
        "prop_shape": shapes.get("prop", []) if cameras else [],
        "action_dim": int(said["action_dim"]),
        "rl_image_size": shapes[first][1] if cameras else -1,
        "env": {
            "suite": said["suite"],
            "task": said["task"],
            "rl_image_size": shapes[first][1] if cameras else 96,
            "action_repeat": int(said["action_repeat"]),
        },
    }


def url_to_ask(url: str, given: str | None) -> str:
    """The server that a remote policy asks.

    url: in its config. given: what the user named, who then decides; None: the config is a
    checkpoint's, which may be somebody else's, so it may only name this machine.
    """
    if given is not None and is_url(given):
        return given
    if here := os.environ.get(URL_VARIABLE):
        return here
    if given is None and urlsplit(url).hostname not in LOOPBACK:
        raise ConfigError(
            f"bc_policy: the checkpoint asks the server {url}, which is another machine; "
            f"expected the variable {URL_VARIABLE} with the server to ask, if you trust it"
        )
    return url


def same_remote(given: str, kept: str) -> bool:
    """Whether a named server or description is the policy that a run keeps; it may have moved."""
    if not is_remote(given) or not is_remote(kept):
        return False
    before = run_config.load(MainConfig, Path(kept))
    if is_url(given) and given == before.own_section.url:
        return True  # its weights are compared whenever it is connected
    now = run_config.load(MainConfig, Path(written_config(given)))
    now.own_section.url = before.own_section.url
    return run_config.to_dict(now) == run_config.to_dict(before)
