"""What a run of several ranks (``torchrun``) cannot do, said before it begins."""

from __future__ import annotations

from torch import nn

from common_utils import ranks
from common_utils.run_config import ConfigError
from networks.dropout import FastDropout, RowDropout
from networks.ibc.mlp import BatchNorm


def check_options(batch_size: int, compile_field: str, compile: str, dry_run: int) -> None:
    """Raise ConfigError for values that do not work with the ranks that there are."""
    world = ranks.world()
    if world == 1:
        return
    several = f"with {world} ranks (torchrun)"
    if batch_size < world:
        raise ConfigError(f"batch_size: {batch_size}, expected at least {world} {several}")
    if compile != "off":
        raise ConfigError(f"{compile_field}: {compile}, expected off {several}")
    if dry_run:
        raise ConfigError(f"dry_run: 1, expected 0 {several}")


def check_networks(model: nn.Module) -> None:
    """Raise ConfigError for layers whose results depend on how a batch is split over ranks."""
    if ranks.world() == 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, BatchNorm)):
            raise ConfigError(
                f"{name} is a batch normalisation, whose statistics are those of the whole batch, "
                "expected another normalisation with several ranks (torchrun)"
            )
        own = isinstance(module, (RowDropout, FastDropout))
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and not own:
            raise ConfigError(
                f"{name} is a {type(module).__name__}, expected networks.dropout.RowDropout with "
                "several ranks (torchrun): its masks belong to the rows of the batch"
            )
