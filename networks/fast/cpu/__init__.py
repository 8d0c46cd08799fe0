"""The C++ kernels (csrc/kernels): float32 on the CPU."""

from networks.fast.cpu import fused, mlp, optim, td_step
from networks.fast.table import Kernel

OPERATIONS = {
    "perceptron": Kernel(mlp.takes_perceptron, mlp.perceptron),
    "min_member": Kernel(mlp.takes_min_member, mlp.min_member),
    "norm_relu": Kernel(fused.takes_norm_relu, fused.norm_relu),
    "channel_norm": Kernel(fused.takes_channel_norm, fused.channel_norm),
    "spatial_embed": Kernel(fused.takes_spatial_embed, fused.spatial_embed),
    "adam": Kernel(optim.takes_adam, optim.adam),
    "td_step": Kernel(td_step.takes_td_step, td_step.td_step),
    "soft_update": Kernel(optim.takes_soft_update, optim.soft_update),
}
