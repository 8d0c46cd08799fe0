"""The original's module for its encoder; the code is in ``bc.explicit.multiview_encoder``."""

from bc.explicit.multiview_encoder import MultiViewEncoder, MultiViewEncoderConfig

__all__ = ["MultiViewEncoder", "MultiViewEncoderConfig"]
