"""The implicit policy: argmin over actions of an energy.

Florence et al. 2021, eq. 1; docs/reference/ibc.md#losses and #samplers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import torch
from torch import nn

from bc.ibc import losses, samplers
from bc.ibc.landscape import landscape
from bc.ibc.losses import GradPenaltyConfig, LossType
from bc.ibc.samplers import Chain, DfoConfig, Energy, LangevinConfig, Precision, Samples
from bc.normalized import ChunkedConfig, NormalizedPolicy, NormConfig
from common_utils.config_types import Flag
from common_utils.ibrl_utils import eval_mode
from common_utils.ranges import AtLeast, Below, Between, NoiseScale, Share, StepSize, Temperature
from common_utils.specs import Decision, Obs, SpecError
from networks import categorical
from networks.exported import BATCH, Graph, Graphs, Port
from networks.graphs import Compile
from networks.ibc.energy import check_kernels, fast_score, fast_score_and_action_grad
from networks.ibc.mlp import MLPEBM, MLPConfig
from networks.ibc.pixel import PixelEBM, PixelEBMConfig

# actions scored at a time when acting, so that many observations do not exhaust memory
MAX_ROWS = 2**16


@dataclass
class EbmPolicyConfig(ChunkedConfig):
    """The energy-based policy: network, training, inference."""

    # the network for states
    net: MLPConfig = field(default_factory=MLPConfig)
    # the network for images (dataset.use_state 0)
    pixel: PixelEBMConfig = field(default_factory=PixelEBMConfig)
    # normalisation; the published EBMs scale the actions' range to [-1, 1]
    norm: NormConfig = field(default_factory=lambda: NormConfig(min_max_actions=1))
    # 1: one energy per action dimension (appendix B.2; trained by InfoNCE, acts by DFO)
    autoregressive: Flag = 0
    # arithmetic of the trunk's products on the CPU; other operations, and GPUs, use float32
    precision: Precision = "float32"
    # off, or evaluations of actions in chains and searches as one graph by torch.compile (default,
    # max: as train_bc's compile, which is for other policies). Made for GPUs: it replaces kernels
    compile: Compile = "off"
    # samples are drawn within the actions' range, widened on each side by this fraction of it
    uniform_boundary_buffer: Annotated[float, Between(0, 1e6)] = 0.05
    # 1: all dimensions use the first one's bounds, as published; 0: each uses its own
    scalar_box: Flag = 1
    # the loss
    loss_type: LossType = "info_nce"
    # counter-examples per demonstrated action
    num_counter_examples: Annotated[int, Between(1, 2**20)] = 256
    # InfoNCE divides the logits by this
    softmax_temperature: Temperature = 1.0
    # InfoNCE clips probabilities below this, as Keras does; 0: exact cross entropy
    prob_clip: Annotated[float, AtLeast(0), Below(1)] = 1e-7
    # share of counter-examples made by derivative-free optimisation ...
    fraction_dfo_samples: Share = 0.0
    # ... and by Langevin dynamics; the others are uniform
    fraction_langevin_samples: Share = 1.0
    # 1: log the mean squared distance of counter-examples from the demonstrated action
    compute_mse: Flag = 0
    # penalty on the energy's action gradient
    grad_penalty: GradPenaltyConfig = field(default_factory=GradPenaltyConfig)
    # Langevin chains, in training and when acting
    langevin: LangevinConfig = field(default_factory=LangevinConfig)
    # derivative-free optimisation, in training and when acting
    dfo: DfoConfig = field(default_factory=DfoConfig)
    # acting: actions drawn uniformly at first
    num_action_samples: Annotated[int, Between(1, 2**20)] = 16384
    # acting: improve them by derivative-free optimisation
    use_dfo: Flag = 0
    # acting: improve them by a Langevin chain
    use_langevin: Flag = 1
    # acting: noise of the first chain (the published program ignores langevin.noise_scale here)
    first_noise_scale: NoiseScale = 1.0
    # acting: run a second chain from the end of the first ...
    optimize_again: Flag = 0
    # ... with this first step size
    again_stepsize_init: StepSize = 0.1
    # ... and this last one
    again_stepsize_final: StepSize = 1e-5
    # ... and this noise
    inference_langevin_noise_scale: NoiseScale = 1.0

    def __post_init__(self) -> None:
        dfo, langevin = self.fraction_dfo_samples, self.fraction_langevin_samples
        if dfo + langevin > 1:
            raise ValueError(
                f"fraction_dfo_samples: {dfo} and fraction_langevin_samples {langevin}, "
                "expected shares whose sum is at most 1"
            )
        penalty = self.grad_penalty
        along_chain = penalty.add_grad_penalty and not penalty.only_apply_final_grad_penalty
        if along_chain and not self.num_langevin:
            raise ValueError(
                "grad_penalty.only_apply_final_grad_penalty: 0 needs Langevin counter-examples, "
                f"expected 1 with fraction_langevin_samples {langevin} of num_counter_examples "
                f"{self.num_counter_examples}, which makes none"
            )
        if self.autoregressive:
            self._check_autoregressive()

    @property
    def num_dfo(self) -> int:
        """Counter-examples made by derivative-free optimisation."""
        return int(self.fraction_dfo_samples * self.num_counter_examples)

    @property
    def num_langevin(self) -> int:
        """Counter-examples made by Langevin chains."""
        return int(self.fraction_langevin_samples * self.num_counter_examples)

    @property
    def draws_in_training(self) -> bool:
        """Its counter-examples."""
        return True

    @property
    def rows_per_sample(self) -> int:
        """The counter-examples plus the demonstrated action."""
        return self.num_counter_examples + 1

    @property
    def rows_when_acting(self) -> int:
        """The sampled actions."""
        return self.num_action_samples

    def check(self, pixels: bool) -> None:
        """ValueError for what is for states alone, or would quietly be computed in float32."""
        if pixels and self.autoregressive:
            raise ValueError("autoregressive: 1, expected 0 with images (dataset.use_state 0)")
        net = self.net
        plain = net.activation == "relu" and net.normalizer is None and net.rate == 0
        for name, value, neutral in (
            ("precision", self.precision, "float32"),
            ("compile", self.compile, "off"),
        ):
            if value == neutral:
                continue
            if pixels:
                more = " (and ebm.pixel.image.conv_precision)" if name == "precision" else ""
                raise ValueError(
                    f"{name}: {value} is for networks over states, expected {neutral} with "
                    f"images{more}"
                )
            if not plain:
                raise ValueError(
                    f"{name}: {value}, expected {neutral} unless net.activation is relu, "
                    f"net.normalizer null and net.rate 0: they are {net.activation}, "
                    f"{'null' if net.normalizer is None else net.normalizer} and {net.rate}"
                )

    def _check_autoregressive(self) -> None:
        """Raise ValueError for a field that does not work with ``autoregressive``."""
        wanted = {
            "loss_type": "info_nce",
            "fraction_dfo_samples": 0,
            "fraction_langevin_samples": 0,
            "use_dfo": 1,
            "use_langevin": 0,
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected {value} with autoregressive 1"
                )
        if self.grad_penalty.add_grad_penalty:
            raise ValueError("grad_penalty.add_grad_penalty: 1, expected 0 with autoregressive 1")


class Draws(NamedTuple):
    """Random numbers of one training step, to repeat a recorded step (None: drawn).

    uniform [B, n, W] in the box; langevin_noise [iterations, B, n, W]; dfo_counts
    int64 [iterations, B, n]; dfo_noise [iterations - 1, B, n, W].
    """

    uniform: torch.Tensor | None = None
    langevin_noise: torch.Tensor | None = None
    dfo_counts: torch.Tensor | None = None
    dfo_noise: torch.Tensor | None = None


class EbmPolicy(NormalizedPolicy):
    """A network that scores actions, and samplers that search for the best one."""

    config_class = EbmPolicyConfig
    cfg: EbmPolicyConfig
    stochastic_eval = True
    box_low: torch.Tensor
    box_high: torch.Tensor

    def __init__(
        self,
        obs_key: str,
        obs_shape: Sequence[int],
        stack: int,
        action_dim: int,
        cfg: EbmPolicyConfig | None = None,
    ) -> None:
        check_kernels()  # a bad setting is refused here, not in the first step
        super().__init__(obs_key, obs_shape, stack, action_dim, cfg)
        # whether the loss and the gradient penalty may come from one evaluation
        self._one_pass = self.pixels or self.cfg.net.dense_layer_type != "spectral_norm"
        # the box in which actions are sampled, in normalised space
        self.register_buffer("box_low", torch.full((self.width,), -1.0))
        self.register_buffer("box_high", torch.ones(self.width))

    def make_net(self) -> nn.Module:
        """See :class:`NormalizedPolicy`."""
        if self.pixels:
            return PixelEBM(self.stack, self.width, self.cfg.pixel)
        return MLPEBM(self.obs_shape[0], self.width, self.cfg.net)

    # ------------------------------------------------------------- statistics

    def fit_actions(self, actions: torch.Tensor) -> list[int]:
        """Fit the action normaliser and the box to sample in; SpecError if the box is empty."""
        still = super().fit_actions(actions)
        low, high = sampling_box(actions, self.cfg.uniform_boundary_buffer)
        low, high = self.act_norm.normalize(low), self.act_norm.normalize(high)
        if self.cfg.scalar_box:
            # a dimension that is not scaled has its own box
            own = torch.zeros_like(low, dtype=torch.bool)
            if self.norm.floor == "safe":
                own[still] = True
            if own[0] or not bool(low[0] < high[0]):
                raise SpecError(
                    "ebm.scalar_box: 1 samples all action dimensions within the range of the "
                    f"first, but that is {float(actions[0, 0]):g} in all of the data; expected "
                    "--ebm.scalar_box 0"
                )
            low, high = torch.where(own, low, low[0]), torch.where(own, high, high[0])
        with torch.no_grad():  # each step of a chunk has the box of one action
            self.box_low.copy_(low.repeat(self.cfg.chunk.length))
            self.box_high.copy_(high.repeat(self.cfg.chunk.length))
        return still

    def graphs(self) -> Graphs:
        """See :class:`BasePolicy`."""
        if self.chunked:
            return super().graphs()
        actions = Port("actions", (BATCH, "samples", self.action_dim))
        outputs = (Port("logits", (BATCH, "samples")),)

        def run(inputs: Obs) -> tuple[torch.Tensor, ...]:
            encoded = self.net.encode(self.features(inputs))
            return (self.net.score(encoded, self.act_norm.normalize(inputs["actions"])),)

        note = "f(observation, action), higher is better; the search for the best action is not in"
        box = {"low": self.to_env(self.box_low), "high": self.to_env(self.box_high)}
        about = {f"actions_{end}": [round(x, 7) for x in at.tolist()] for end, at in box.items()}
        ports = (*self.ports(), actions)
        return {
            "action": "the search for an energy's best action is not exported, expected energy",
            "energy": Graph(run, ports, outputs, (self,), note, about=about),
        }

    def network_pass(self, inputs: Obs) -> torch.Tensor:
        """The part that is computed once per observation."""
        return self.net.encode(self.features(inputs))

    # ------------------------------------------------------------- training

    def loss(self, batch: Any, draws: Draws | None = None) -> torch.Tensor:
        """The chosen loss plus gradient penalty, averaged over the batch; sets ``metrics``."""
        cfg = self.cfg
        inputs, _ = self._read(batch.obs)
        features = self.features(inputs)
        true = self.target(batch, features.device)
        encoded = self.net.encode(features)
        chain = None
        if not cfg.grad_penalty.only_apply_final_grad_penalty:
            chain = Chain(cfg.grad_penalty.grad_norm_type)
        counter = self._counter_examples(encoded, draws or Draws(), chain)
        actions = torch.cat([counter, true.unsqueeze(1)], dim=1)
        logits, penalty = self._logits_and_penalty(encoded, actions, chain)
        loss = losses.ebm_loss(
            cfg.loss_type,
            logits,
            counter,
            true,
            temperature=cfg.softmax_temperature,
            prob_clip=cfg.prob_clip,
            copied_logits=logits[:, :-1].detach() if cfg.loss_type == "cd_kl" else None,
        ).mean()
        self.metrics = {"ebm_loss": loss.detach()}
        if cfg.compute_mse:
            self.metrics["mse_counter_examples"] = (counter - true.unsqueeze(1)).square().mean()
        if penalty is None:
            return loss
        self.metrics["grad_penalty"] = penalty.mean().detach()
        return loss + penalty.mean()

    def _logits_and_penalty(
        self, encoded: torch.Tensor, actions: torch.Tensor, chain: Chain | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, n+1] and the gradient penalty [B] (None without), both with graph."""
        cfg, net = self.cfg.grad_penalty, self.net
        if not cfg.add_grad_penalty:
            return fast_score(net, encoded, actions, self.cfg.precision), None
        where = actions if chain is None else torch.cat(chain.before, dim=1)
        if chain is None and self._one_pass:
            logits, grad = fast_score_and_action_grad(net, encoded, actions, self.cfg.precision)
        else:
            # every call in training mode does its own power iteration, as published
            logits = fast_score(net, encoded, actions, self.cfg.precision)
            _, grad = fast_score_and_action_grad(net, encoded, where, self.cfg.precision)
        return logits, losses.grad_penalty(grad, cfg)

    @torch.no_grad()
    def _counter_examples(
        self, encoded: torch.Tensor, draws: Draws, chain: Chain | None
    ) -> torch.Tensor:
        """[B, n, W]: uniform ones, then those of DFO, then those of Langevin chains."""
        cfg, num, rng = self.cfg, self.cfg.num_counter_examples, self.generator
        low, high = self.box_low, self.box_high
        out = draws.uniform
        if out is None:
            out = samplers.uniform(len(encoded), num, low, high, rng)
        num_dfo, num_langevin = cfg.num_dfo, cfg.num_langevin
        if not num_dfo and not num_langevin:
            return out
        parts = [out[:, : num - num_dfo - num_langevin]]
        with eval_mode(self.net):
            energy = Energy(self.net, encoded, cfg.precision, cfg.compile)
            if num_dfo:
                found = samplers.iterative_dfo(
                    energy, out, low, high, cfg.dfo,
                    generator=rng, counts=draws.dfo_counts, noise=draws.dfo_noise,
                ).actions  # fmt: skip
                parts.append(found[:, num - num_dfo - num_langevin : num - num_langevin])
            if num_langevin:
                noise = draws.langevin_noise
                parts.append(
                    # chains are independent, so only those that are used are run
                    samplers.langevin(
                        energy, out[:, num - num_langevin :], low, high, cfg.langevin,
                        generator=rng, chain=chain,
                        noise=None if noise is None else noise[:, :, num - num_langevin :],
                    )
                )  # fmt: skip
        return torch.cat(parts, dim=1)

    # ------------------------------------------------------------- inference

    @torch.no_grad()
    def sample(
        self, features: torch.Tensor, rng: torch.Generator, *, aligned: bool = False
    ) -> Samples:
        """Improved samples [B, num_action_samples, W] and their probabilities.

        ``aligned`` makes the probabilities match the samples even if ``dfo.aligned`` is 0.
        """
        cfg, low, high = self.cfg, self.box_low, self.box_high
        encoded = self.net.encode(features)
        energy = Energy(self.net, encoded, cfg.precision, cfg.compile)
        actions = samplers.uniform(len(encoded), cfg.num_action_samples, low, high, rng)
        return self.improve(energy, actions, rng, aligned=aligned)

    def improve(
        self,
        energy: Energy,
        actions: torch.Tensor,
        rng: torch.Generator | None = None,
        *,
        aligned: bool = False,
        draws: Draws | None = None,
        again_noise: torch.Tensor | None = None,
    ) -> Samples:
        """Improve ``actions`` [B, N, W] by DFO and Langevin chains, as configured."""
        cfg, low, high = self.cfg, self.box_low, self.box_high
        draws = draws or Draws()
        samples = None
        if cfg.use_dfo:
            dfo = replace(cfg.dfo, aligned=1) if aligned else cfg.dfo
            samples = samplers.iterative_dfo(
                energy, actions, low, high, dfo,
                generator=rng, counts=draws.dfo_counts, noise=draws.dfo_noise,
            )  # fmt: skip
            actions = samples.actions
        if cfg.use_langevin:
            first = replace(cfg.langevin, noise_scale=cfg.first_noise_scale)
            actions = samplers.langevin(
                energy, actions, low, high, first, generator=rng, noise=draws.langevin_noise
            )
            if cfg.optimize_again:
                second = replace(
                    cfg.langevin,
                    schedule="polynomial",
                    sampler_stepsize_init=cfg.again_stepsize_init,
                    sampler_stepsize_final=cfg.again_stepsize_final,
                    noise_scale=cfg.inference_langevin_noise_scale,
                )
                actions = samplers.langevin(
                    energy, actions, low, high, second, generator=rng, noise=again_noise
                )
            samples = None
        if samples is None:
            samples = Samples(actions, energy.probabilities(actions))
        return samples

    def explain(self, obs: Obs, *, generator: torch.Generator | None = None) -> Decision:
        """See :class:`common_utils.specs.Explainer`: the energy around the action."""
        action = self.act(obs, generator=generator)
        return Decision(action, landscape=landscape(self, obs, action))

    def _in_chunks(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from features.split(max(1, MAX_ROWS // self.cfg.num_action_samples))

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        out = []
        for part in self._in_chunks(features):
            actions, probs = self.sample(part, rng)
            if greedy:
                index = probs.argmax(1, keepdim=True)
            else:
                index = categorical.draw(probs, 1, rng)
            out.append(samplers.take_samples(actions, index).squeeze(1))
        return torch.cat(out)

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        """Samples drawn by their probability, that is, in proportion to exp(-energy)."""
        out = []
        for part in self._in_chunks(features):
            actions, probs = self.sample(part, rng, aligned=True)
            index = categorical.draw(probs, n, rng)
            out.append(samplers.take_samples(actions, index))
        return torch.cat(out)


def sampling_box(
    actions: torch.Tensor, buffer: float, low: float = -1.0, high: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds [A] of actions [N, A], widened by ``buffer`` of the range, within [low, high]."""
    least, most = actions.amin(0), actions.amax(0)
    margin = buffer * (most - least)
    return (least - margin).clamp(low, high), (most + margin).clamp(low, high)
