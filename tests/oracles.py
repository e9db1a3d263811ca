"""Exact posteriors of a few points on every process, states drawn from them, and a UNet that answers exactly for them."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from nag.corrections import Correction, NoiseGuidance
from nag.corrections.directions import training_target
from nag.noise.discrete import DiscreteVP
from nag.noise.levels import SchedulerLevels
from nag.noise.process import EDM, Cosine, Flow, GaussianProcess, VarianceExploding, VariancePreserving
from nag.noise.read import read_levels
from nag.pipelines import UNet2DPipeline
from nag.seams import corrected
from nag.theory import FiniteData, LevelPrior

# float64, sums of hundreds of terms of order 1
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

PROCESSES: dict[str, GaussianProcess] = {
    "vp": VariancePreserving(),
    "discrete_vp": DiscreteVP.from_alphas_cumprod(DDPMScheduler(num_train_timesteps=40).alphas_cumprod),
    "ve": VarianceExploding(),
    "edm": EDM(),
    "flow": Flow(),
    "cosine": Cosine(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def prior_of(process: GaussianProcess) -> LevelPrior:
    """Some training prior of the process."""
    if isinstance(process, DiscreteVP):
        return LevelPrior.timesteps(process)
    return LevelPrior.quadrature(process, panels=5)


def oracle_of(
    process: GaussianProcess, generator: torch.Generator, dimension: int = 6, weighted: bool = True
) -> FiniteData:
    """Nine points, with unequal weights."""
    weights = torch.rand(9, generator=generator, dtype=torch.float64) if weighted else None
    data = draw(generator, 9, dimension)
    return FiniteData(data=data, process=process, prior=prior_of(process), data_weights=weights)


def states(oracle: FiniteData, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws (x, t) from p(t) p(x|t); the data with equal weights."""
    index = torch.randint(len(oracle.data), (count,), generator=generator)
    level = torch.multinomial(
        oracle.prior.log_probability.exp(), count, replacement=True, generator=generator
    )
    x_0, t = oracle.data[index], oracle.prior.t[level]
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    return oracle.process.corrupt(x_0, t, eps), t


def relative(value: Tensor, wanted: Tensor) -> float:
    """Largest relative error over the batch, in the Euclidean norm."""
    return float(((value - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max())


SCHEDULERS = {
    "eps": lambda: DDIMScheduler(timestep_spacing="trailing"),
    "v": lambda: DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
    "x_0": lambda: DDIMScheduler(timestep_spacing="trailing", prediction_type="sample"),
    "eps, VE state": lambda: EulerDiscreteScheduler(),
    "velocity": lambda: FlowMatchEulerDiscreteScheduler(),
    "edm": lambda: EDMEulerScheduler(sigma_max=20.0),
    "edm, sign turned": lambda: EDMEulerScheduler(sigma_max=20.0, prediction_type="v_prediction"),
}
COMPARABLE = [name for name in SCHEDULERS if name != "x_0"]
CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # float64 throughout


class ExactUNet(UNet2DModel):
    """The optimum for finite data, of each class and of all: told the level, or not where its embedding is zero."""

    def __init__(self, levels: SchedulerLevels, loss_weight=None, classes: bool = False) -> None:
        super().__init__(
            sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
            num_class_embeds=3 if classes else None,
        )  # fmt: skip
        data = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        process = levels.training
        prior = LevelPrior.discrete(torch.linspace(process.t_min, process.t_max, 200, dtype=torch.float64))
        self.oracles = [
            FiniteData(data=part, process=process, prior=prior) for part in (data[:3], data[3:], data)
        ]
        self.oracle = self.oracles[-1]
        self.levels, self.loss_weight, self.calls = levels, loss_weight, 0

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, **_: object
    ) -> object:
        self.calls += 1
        level = self.levels.training.t_from_log_snr(self.levels.log_snr_of(timestep)).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(timestep.float().expand(len(sample))))
        told = embedding.abs().sum(1) > 0
        name, sign = self.levels.prediction, self.levels.prediction_scale
        rows = []
        for k in range(len(sample)):
            oracle = self.oracle if class_labels is None else self.oracles[int(class_labels[k])]
            x = sample[k : k + 1]
            blind = oracle.blind(x, name, self.loss_weight)
            rows.append(oracle.prediction(x, level[k : k + 1], name) if told[k] else blind)
        return SimpleNamespace(sample=sign * torch.cat(rows))


class ExactPosterior:
    """p(log_snr | x) of finite data."""

    def __init__(self, oracle: FiniteData) -> None:
        self.oracle = oracle

    def log_posterior(self, x: Tensor, log_snr: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.oracle.log_posterior(x, self.oracle.process.t_from_log_snr(log_snr.double()))

    def estimate(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return x

    def posterior_moment(self, state: Tensor, function) -> Tensor:
        return self.oracle.posterior_moment(state, function)


def situation(name: str, *, wrong_by: float = 0.1, batch: int = 3, **options):
    """A network, its levels, a step in the middle, states whose noise is `wrong_by` too much, and the exact posterior."""
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(20)
    levels = read_levels(scheduler)
    step = int((levels.log_snr - 0.5).abs().argmin())
    unet = ExactUNet(levels, **options)
    generator = torch.Generator().manual_seed(2)
    x_0 = unet.oracle.data[torch.tensor([0, 3, 5])[torch.arange(batch) % 3]]
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    u = float(levels.network_alpha[step]) * x_0 + (1 + wrong_by) * float(levels.network_sigma[step]) * eps
    ask = {
        "timestep": levels.timestep_of(levels.log_snr[step]), "levels": levels, "step": step, "scheduler": scheduler
    }  # fmt: skip
    return unet, u, ask, ExactPosterior(unet.oracle)


def answered(
    unet, u, ask, *corrections: Correction, regressor=None, class_labels=None, guidance_scale=1.0
) -> Tensor:
    """What the network's rows become when a loop of one question is corrected, and class guidance of them."""
    scheduler, several = ask["scheduler"], guidance_scale != 1
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(ask["step"])
    states, labels = u, class_labels
    if several:
        none = torch.full_like(class_labels, unet.config.num_class_embeds - 1)
        states, labels = torch.cat([u, u]), torch.cat([none, class_labels])
    with corrected(UNet2DPipeline(unet, scheduler), *corrections, regressor=regressor):
        rows = unet(states, ask["timestep"], class_labels=labels).sample
    if not several:
        return rows
    none, told = rows.chunk(2)
    return told + (guidance_scale - 1) * (told - none)


def guided(unet, u, ask, *, regressor=None, class_labels=None, guidance_scale=1.0, **settings) -> Tensor:
    guidance = NoiseGuidance(**({"interval": (None, None)} | settings))
    return answered(
        unet, u, ask, guidance, regressor=regressor, class_labels=class_labels, guidance_scale=guidance_scale
    )


def exact(unet, u, ask, weight: float) -> Tensor:
    """f_t - w lambda grad log p(t|u), from the oracle's gradient."""
    level = ask["levels"].log_snr[ask["step"]]
    t = ask["levels"].training.t_from_log_snr(level)
    slope = training_target(ask["levels"], level).slope
    return unet(u, ask["timestep"]).sample - weight * slope * unet.oracle.posterior_gradient(u, t)


def real(unet: UNet2DModel, batch: int = 2, **config):
    """States for a real network, and what to ask it, in the middle of a DDIM schedule."""
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(10)
    levels = read_levels(scheduler)
    u = torch.randn(batch, unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(3))
    return u, {"timestep": scheduler.timesteps[6], "levels": levels, "step": 6, "scheduler": scheduler}
