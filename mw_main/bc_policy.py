"""The original's module for its Meta-World policy, now in ``bc.explicit.mw_bc_policy``."""

from bc.explicit.mw_bc_policy import BcPolicy, BcPolicyConfig

__all__ = ["BcPolicy", "BcPolicyConfig"]
