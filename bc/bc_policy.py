"""The original's module for its policies; the code is in ``bc.explicit.bc_policy``."""

from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig

__all__ = ["BcPolicy", "BcPolicyConfig", "StateBcPolicy", "StateBcPolicyConfig"]
