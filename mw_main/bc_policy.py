"""Where the original keeps its Meta-World policy; the code is in ``bc.explicit.mw_bc_policy``."""

from bc.explicit.mw_bc_policy import BcPolicy, BcPolicyConfig

__all__ = ["BcPolicy", "BcPolicyConfig"]
