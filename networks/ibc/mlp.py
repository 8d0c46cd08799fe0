"""Networks of Implicit Behavioral Cloning over state vectors (Florence et al., CoRL 2021).

* :class:`MLPEBM`: f(o, a), **minus** the energy of the paper (higher is better);
* :class:`MLPMSE`: explicit regression; :class:`MLPMDN`: a mixture of Gaussians.

All three have one trunk (:class:`MLPConfig`) and linear heads. Observations are float32 [B, D]
(history flattened, oldest first) and actions float32 [..., A], both normalised by the policy.
Only twice differentiable operations are used: the gradient penalty differentiates df/da.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common_utils.ranges import Between, Dropout, Temperature, Width
from networks.dropout import FastDropout
from networks.ibc.energy_net import EnergyNet, Weights
from networks.mixture import GaussianMixture

INIT_STD = 0.05  # Keras's 'normal' initialiser, for kernels and biases alike


@dataclass
class MLPConfig:
    """The trunk of an IBC network over vectors."""

    # units of a hidden layer
    width: Width = 512
    # hidden layers; a residual block counts as two (plus the first projection)
    depth: Annotated[int, Between(0, 256)] = 2
    # dropout rate
    rate: Dropout = 0.1
    # residual blocks as in He et al. 2016a (Orig) or 2016b (PreActivation), or a plain MLP
    layers: Literal["MLPDropout", "ResNetOrig", "ResNetPreActivation"] = "ResNetPreActivation"
    # spectral_norm divides every kernel by its largest singular value (one power iteration)
    dense_layer_type: Literal["regular", "spectral_norm"] = "regular"
    # relu, or swish (x * sigmoid(x))
    activation: Literal["relu", "swish"] = "relu"
    # normalisation inside residual blocks
    normalizer: Literal["Layer", "Batch"] | None = None

    def __post_init__(self) -> None:
        if self.layers == "MLPDropout":
            if self.depth < 1:
                raise ValueError(f"depth: {self.depth}, expected at least 1 with MLPDropout")
            if self.normalizer is not None:
                raise ValueError(f"normalizer: {self.normalizer}, expected null with MLPDropout")
        elif self.depth % 2:
            raise ValueError(
                f"depth: {self.depth}, expected an even number with {self.layers} (2 per block)"
            )


@dataclass
class MDNConfig(MLPConfig):
    """The trunk of an MDN and its mixture."""

    # Gaussians in the mixture
    num_components: Annotated[int, Between(1, 4096)] = 26
    # the logits of the mixture's weights are divided by this, in training
    training_temperature: Temperature = 2.5
    # the same, when acting
    test_temperature: Temperature = 2.5
    # when acting, every scale is raised to this power (above 1: narrower where it is below 1)
    test_variance_exponent: Annotated[float, Between(0, 100)] = 1.0


class Dense(nn.Linear):
    """A linear layer whose kernel and bias both start as N(0, 0.05^2)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INIT_STD)
        nn.init.normal_(self.bias, std=INIT_STD)

    def sigma(self) -> torch.Tensor | None:
        """The divisor of the kernel, a scalar; None is 1."""
        return None


class SpectralNormDense(Dense):
    """A linear layer with its kernel divided by an estimate of its largest singular value.

    Every call does one power iteration from the stored vector ``u`` [1, out]; only calls in
    training mode store the result, and gradients flow through the whole estimate, as in the
    original (Miyato et al. 2018 hold the two vectors constant).
    """

    u: torch.Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("u", torch.randn(1, out_features))

    def sigma(self) -> torch.Tensor:
        u = self.u.clone()  # the graph keeps this copy, while the buffer changes
        v = _unit(u @ self.weight)
        u = _unit(v @ self.weight.t())
        if self.training:
            with torch.no_grad():
                self.u.copy_(u)
        return (v @ self.weight.t() @ u.t()).squeeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / self.sigma(), self.bias)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """x divided by its Euclidean norm, with TensorFlow's guard against 0 / 0."""
    return x * x.square().sum().clamp(min=1e-12).rsqrt()


class BatchNorm(nn.Module):
    """Keras's batch normalisation over all axes but the last (momentum 0.99, eps 1e-3).

    Unlike torch's, the running variance is the population's, not the sample's.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int, momentum: float = 0.99, eps: float = 1e-3) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            axes = tuple(range(x.dim() - 1))
            mean, var = x.mean(axes), x.var(axes, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 1 - self.momentum)
                self.running_var.lerp_(var, 1 - self.momentum)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


def make_dense(in_dim: int, out_dim: int, cfg: MLPConfig) -> Dense:
    """A linear layer of the configured kind."""
    if cfg.dense_layer_type == "spectral_norm":
        return SpectralNormDense(in_dim, out_dim)
    return Dense(in_dim, out_dim)


def make_norm(cfg: MLPConfig) -> nn.Module:
    """The normalisation layer of a residual block; the identity for None."""
    if cfg.normalizer == "Layer":
        return nn.LayerNorm(cfg.width, eps=1e-6)
    if cfg.normalizer == "Batch":
        return BatchNorm(cfg.width)
    return nn.Identity()


def make_activation(cfg: MLPConfig) -> nn.Module:
    """The activation function as a module."""
    return nn.SiLU() if cfg.activation == "swish" else nn.ReLU()


class ResidualBlock(nn.Module):
    """Two dense layers and a skip connection, [..., width] -> [..., width].

    Pre-activation: x + dense(drop(act(norm(dense(drop(act(norm(x))))))));
    original: drop(act(x + norm(dense(drop(act(norm(dense(x)))))))).
    """

    def __init__(self, cfg: MLPConfig) -> None:
        super().__init__()
        self.w1 = make_dense(cfg.width, cfg.width, cfg)
        self.w2 = make_dense(cfg.width, cfg.width, cfg)
        self.norm1, self.norm2 = make_norm(cfg), make_norm(cfg)
        self.activation, self.dropout = make_activation(cfg), FastDropout(cfg.rate)
        self.pre_activation = cfg.layers == "ResNetPreActivation"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_activation:
            y = self.w1(self.dropout(self.activation(self.norm1(x))))
            return x + self.w2(self.dropout(self.activation(self.norm2(y))))
        y = self.dropout(self.activation(self.norm1(self.w1(x))))
        return self.dropout(self.activation(self.norm2(self.w2(y)) + x))


class Trunk(nn.Module):
    """Hidden layers, [..., in_dim] -> [..., width]: ``rest(first(x))``.

    ``first`` is the first linear layer; :class:`MLPEBM` computes it in two parts.
    """

    def __init__(self, in_dim: int, cfg: MLPConfig) -> None:
        super().__init__()
        self.first = make_dense(in_dim, cfg.width, cfg)
        self.residual = cfg.layers != "MLPDropout"
        self.activation, self.dropout = make_activation(cfg), FastDropout(cfg.rate)
        self.blocks, self.hidden = nn.ModuleList(), nn.ModuleList()
        if self.residual:
            self.blocks.extend(ResidualBlock(cfg) for _ in range(cfg.depth // 2))
        else:
            self.hidden.extend(make_dense(cfg.width, cfg.width, cfg) for _ in range(cfg.depth - 1))

    def rest(self, h: torch.Tensor) -> torch.Tensor:
        """Everything after the first linear layer, [..., width] -> [..., width]."""
        for block in self.blocks:
            h = block(h)
        if self.residual:
            return h
        h = self.dropout(self.activation(h))
        for layer in self.hidden:
            h = self.dropout(self.activation(layer(h)))
        return h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(x))


def check_last_dim(name: str, x: torch.Tensor, dim: int, ndim: int) -> None:
    """ValueError unless ``x`` has ``ndim`` axes, the last one of size ``dim``."""
    if x.dim() != ndim or x.size(-1) != dim:
        raise ValueError(f"{name} must have {ndim} axes, the last of size {dim}: {list(x.shape)}")


class MLPEBM(EnergyNet):
    """f(o, a): trunk over [o, a], then one unit. Higher is better (f is minus the energy)."""

    def __init__(self, obs_dim: int, action_dim: int, cfg: MLPConfig) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.cfg = obs_dim, action_dim, cfg
        self.trunk = Trunk(obs_dim + action_dim, cfg)
        self.energy = make_dense(cfg.width, 1, cfg)

    def encode(self, obs: torch.Tensor) -> torch.Tensor:
        """The observation's share of the first layer, obs [B, D] -> [B, width].

        W_o o + b; with spectral norm W_o o, because :meth:`first_layer` still has to divide it. No
        power iteration is done here: that belongs to :meth:`score`, once per call.
        """
        check_last_dim("obs", obs, self.obs_dim, 2)
        first = self.trunk.first
        bias = None if isinstance(first, SpectralNormDense) else first.bias
        return F.linear(obs, first.weight[:, : self.obs_dim], bias)

    def first_layer(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(h [B, width], W_a [width, A]) such that the first layer's output is h + W_a a."""
        first = self.trunk.first
        weight, sigma = first.weight[:, self.obs_dim :], first.sigma()
        if sigma is None:
            return encoded, weight
        return encoded / sigma + first.bias, weight / sigma

    def score(self, encoded: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """encoded [B, width] and actions [B, N, A] -> f [B, N]."""
        check_last_dim("actions", actions, self.action_dim, 3)
        h, weight = self.first_layer(encoded)
        h = h.unsqueeze(1) + F.linear(actions, weight)
        return self.energy(self.trunk.rest(h)).squeeze(-1)

    def fast_weights(self) -> Weights | None:
        """Of a ReLU trunk without normalisation or dropout, float32 on the CPU; else None."""
        return _weights_of(self) if _is_plain(self) else None


def _is_plain(net: MLPEBM) -> bool:
    """Whether the network has the form of :class:`Weights`, on which the fast passes work."""
    cfg = net.cfg
    weight = net.energy.weight
    if cfg.activation != "relu" or cfg.normalizer is not None:
        return False
    if cfg.rate > 0 and net.training:
        return False
    if cfg.layers != "MLPDropout" and cfg.depth < 2:
        return False
    return weight.is_cpu and weight.dtype is torch.float32


def _weights_of(net: MLPEBM) -> Weights:
    """A plain network's weights; one power iteration per layer with spectral norm."""
    first, kind = net.trunk.first, net.cfg.layers
    sigma = first.sigma()
    w_a = first.weight[:, net.obs_dim :]
    dense: list[Any] = [d for block in net.trunk.blocks for d in (block.w1, block.w2)]
    dense += net.trunk.hidden
    layers, biases = [_divided(d) for d in dense], [d.bias for d in dense]
    out, const = _divided(net.energy)[0], net.energy.bias[0]
    head, head_stream = out, None
    if kind == "ResNetPreActivation":
        head, head_stream = out @ layers.pop(), out
        const = const + out @ biases.pop()
    return Weights(
        kind,
        w_a if sigma is None else w_a / sigma,
        tuple(layers),
        tuple(biases),
        head,
        head_stream,
        const,
        sigma,
        first.bias if isinstance(first, SpectralNormDense) else None,
    )


def _divided(layer: Any) -> torch.Tensor:
    sigma = layer.sigma()
    return layer.weight if sigma is None else layer.weight / sigma


class MLPMSE(nn.Module):
    """Explicit regression: obs [B, D] -> normalised action [B, A]."""

    def __init__(self, obs_dim: int, action_dim: int, cfg: MLPConfig) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.cfg = obs_dim, action_dim, cfg
        self.trunk = Trunk(obs_dim, cfg)
        self.out = make_dense(cfg.width, action_dim, cfg)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        check_last_dim("obs", obs, self.obs_dim, 2)
        return self.out(self.trunk(obs))


class MDNHead(nn.Module):
    """Features [B, width] -> a mixture of K Gaussians over actions [B, A].

    In training mode this is the distribution of the loss; in eval mode that of actions, with the
    test temperature and every scale raised to ``test_variance_exponent``. As in the original,
    exp() of the head called ``logvar`` is the scale (standard deviation), not the variance.
    """

    def __init__(self, action_dim: int, cfg: MDNConfig) -> None:
        super().__init__()
        self.cfg, self.action_dim = cfg, action_dim
        self.mu = make_dense(cfg.width, cfg.num_components * action_dim, cfg)
        self.logvar = make_dense(cfg.width, cfg.num_components * action_dim, cfg)
        self.pi = make_dense(cfg.width, cfg.num_components, cfg)

    def forward(self, features: torch.Tensor) -> GaussianMixture:
        cfg = self.cfg
        shape = (features.size(0), cfg.num_components, self.action_dim)
        loc, log_scale = self.mu(features).view(shape), self.logvar(features).view(shape)
        temperature = cfg.training_temperature if self.training else cfg.test_temperature
        if not self.training:
            log_scale = log_scale * cfg.test_variance_exponent
        return GaussianMixture(self.pi(features) / temperature, loc, log_scale.exp())


class MLPMDN(nn.Module):
    """Mixture density network: obs [B, D] -> mixture over normalised actions (:class:`MDNHead`)."""

    def __init__(self, obs_dim: int, action_dim: int, cfg: MDNConfig) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.cfg = obs_dim, action_dim, cfg
        self.trunk = Trunk(obs_dim, cfg)
        self.head = MDNHead(action_dim, cfg)

    def forward(self, obs: torch.Tensor) -> GaussianMixture:
        check_last_dim("obs", obs, self.obs_dim, 2)
        return self.head(self.trunk(obs))
