"""From the options of `nag finetune denoiser` to a loss, the scheduler that samples, and the pipeline that is saved.

    objective   loss                    scheduler                             pipeline
    ddpm        |f - r|^2               DDPM                                  UNet2D
    adm         + variational bound     DDPM, learned_range                   UNet2D
    flow        |f - r|^2               flow-matching Euler                   UNet2D
    edm         |f - r|^2               EDM Euler                             UNet2D
    uedm        w_t |f - r|^2           Unified                               NoiseUnconditional
    ict, ecm    consistency             Consistency                           NoiseUnconditional
    eqm         |f - r|^2 or |grad E - r|^2   EquilibriumMatching             EqM

A loss is given a way to ask the network, `ask(u, timestep)`, which hides the level and the class of the samples that dropout
has chosen; the same samples and dropouts count in every call of one step.

With level dropout 1 every pipeline but EqM's is NoiseUnconditional: the network then knows no level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from nag.blind import ConsistencyScheduler, EquilibriumMatchingScheduler, UnifiedScheduler
from nag.blind.consistency import CONSISTENCY, ConsistencyTraining
from nag.blind.energy import gradient_of
from nag.blind.learned_variance import variational_bound
from nag.blind.objectives import Objective, make_objective
from nag.noise.checks import require
from nag.noise.discrete import DiscreteVP
from nag.noise.process import Flow
from nag.noise.read import read_levels, read_settings, read_train_timesteps
from nag.noise.target import expand
from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline

if TYPE_CHECKING:
    from nag.finetune.denoiser import DenoiserOptions
    from nag.finetune.subject import Subject

__all__ = [
    "PREDICTIONS",
    "Loss",
    "Regression",
    "kept_scheduler",
    "loss_of",
    "new_scheduler",
    "pipeline_of",
    "read_network",
    "title",
]

Ask = Callable[[Tensor, Tensor], Tensor]


class Loss(Protocol):
    """What is minimised."""

    outputs: int
    """Channels that the network gives per channel of the state."""

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        """Loss per sample, `(B,)`, of images and eps `(B, C, H, W)`; u, uniform in [0, 1), says which level."""


def _mean(square: Tensor) -> Tensor:
    return square.mean(dim=tuple(range(1, square.ndim)))


class Regression:
    """w_t |f(u, t) - r|^2, averaged over pixels."""

    outputs = 1

    def __init__(self, objective: Objective, snr_gamma: float | None = None) -> None:
        self.objective, self.snr_gamma = objective, snr_gamma

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        t = self.objective.level(u)
        x_t = self.objective.process.corrupt(images, t, eps)
        value = self.value(ask, x_t, self.objective.timestep(t))
        error = _mean((value - self.objective.target(t).value(images, eps)).square())
        return self.objective.weight(t) * min_snr(self.objective, t, self.snr_gamma) * error

    def value(self, ask: Ask, x_t: Tensor, timestep: Tensor) -> Tensor:
        """What is compared with the target, `(B, C, H, W)`."""
        return ask(x_t, timestep).float()


def min_snr(objective: Objective, t: Tensor, gamma: float | None) -> Tensor:
    """min(SNR, gamma) |dx_0 / dr|^2 for a target r, so that it weighs the error of the clean image; 1 for None.

    Hang 2023, arXiv 2303.09556, eq. 6 to 8: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v.
    """
    if gamma is None:
        return torch.ones_like(t)
    target = objective.target(t)
    snr = (target.alpha / target.sigma) ** 2
    return snr.clamp(max=gamma) * (target.sigma / target.determinant) ** 2


class ExplicitEnergy(Regression):
    """The same for grad E of an explicit energy, differentiated a second time by training."""

    def __init__(self, objective: Objective, kind: str) -> None:
        super().__init__(objective)
        self.kind = kind

    def value(self, ask: Ask, x_t: Tensor, timestep: Tensor) -> Tensor:
        return gradient_of(lambda x: ask(x, timestep), x_t, self.kind, create_graph=True).float()


class LearnedVariance:
    """ADM's |f - eps|^2 + T/1000 times the variational bound of the variance (Nichol 2021, eq. 16)."""

    outputs = 2

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        process: Any = self.objective.process
        assert isinstance(process, DiscreteVP)
        t = self.objective.level(u)
        x_t = process.corrupt(images, t, eps)
        value, variance = ask(x_t, self.objective.timestep(t)).float().chunk(2, dim=1)
        bound = variational_bound(process, images, x_t, t, value, variance)
        return _mean((value - eps).square()) + bound * (process.num_train_timesteps / 1000)


class Consistency:
    """A pair of points of one trajectory, the lower of them without gradient; see `nag.blind.consistency`."""

    outputs = 1

    def __init__(self, training: ConsistencyTraining) -> None:
        self.training = training

    def __call__(self, ask: Ask, images: Tensor, eps: Tensor, u: Tensor, step: int) -> Tensor:
        training = self.training

        def end(level: Tensor) -> Tensor:
            x = images + expand(level, images) * eps
            value = ask(training.model_input(x, level), training.timestep(level)).float()
            return training.denoised(value, x, level)

        upper, lower = training.pair(u, step)
        # the same dropout inside the network for both points of a pair, on whatever device
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            wanted = end(lower)
        torch.clear_autocast_cache()  # or the casts of the pass without gradient might serve the next one
        return training.weight(upper, lower) * training.distance(end(upper), wanted)


PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0", "flow_prediction": "velocity"}
"""The words of --prediction_type in this library's."""


def read_network(scheduler: Any) -> tuple[str, Any]:
    """What the network of a diffusers scheduler predicts, and its training process."""
    shifts = "use_dynamic_shifting" in read_settings(
        scheduler
    )  # by the size of an image, which changes neither
    fixed = {"use_dynamic_shifting": False} if shifts else {}
    copy = type(scheduler).from_config(scheduler.config, **fixed)
    copy.set_timesteps(10)
    levels = read_levels(copy)
    return levels.prediction, levels.training


def objective_of_network(scheduler: Any, name: str | None = None) -> Objective:
    """The regression objective that the network of a VP or flow scheduler was trained for."""
    prediction, process = read_network(scheduler)
    known, kind = isinstance(process, (DiscreteVP, Flow)), type(scheduler).__name__
    require(("scheduler", kind, "have a VP or flow training process without an --objective", known))
    return Objective(
        name=name or ("flow" if isinstance(process, Flow) else "ddpm"),
        process=process,
        prediction=prediction,
        num_train_timesteps=int(read_train_timesteps(scheduler)),
        learned_variance=name == "adm",
    )


def objective_of(scheduler: Any, options: DenoiserOptions) -> Objective:
    """The regression objective of the options, or that of the scheduler's network where they name none."""
    name = options.objective
    if name == "eqm":
        return make_objective(
            "eqm",
            decay=options.eqm_decay,
            interpolation=options.eqm_interpolation,
            start=options.eqm_start,
            multiplier=options.eqm_multiplier,
        )
    if name == "edm":
        return make_objective("edm", sigma_data=options.sigma_data)
    if name == "uedm":
        weighted = options.uedm_weight == "edm"
        return make_objective("uedm", sigma_data=options.sigma_data, weighted=weighted)
    return objective_of_network(scheduler, name)


def loss_of(scheduler: Any, options: DenoiserOptions, *, outputs: int, latent: bool = False) -> Loss:
    """The loss of the options; options that do not go together would train something else than asked for.

    Args:
        outputs: channels that the network gives per channel of the state; two of a pretrained network mean a learned variance.
        latent: whether its pipeline has latents.
    """
    learned = outputs == 2 and (latent or options.model is not None)
    found = _loss_of(scheduler, options, learned_variance=learned)
    must = "predict as many channels as its input has, twice as many with a learned variance"
    require(("model", outputs, must, found.outputs == outputs))
    return found


def _loss_of(scheduler: Any, options: DenoiserOptions, *, learned_variance: bool) -> Loss:
    name = options.objective
    plain = name in (None, "ddpm", "flow")
    of, energy, asked = f"for the objective {name}", options.energy, options.prediction_type
    blind, weight = options.level_dropout, options.null_loss_weight
    require(
        (
            "energy",
            energy,
            f"be left out {of}; only eqm regresses a gradient",
            energy is None or name == "eqm",
        ),
        (
            "level_dropout",
            blind,
            f"be 1 {of}, whose sampler has no level to tell",
            blind == 1 or name != "eqm",
        ),
        ("null_loss_weight", weight, f"be uniform {of}", weight == "uniform" or plain),
        ("snr_gamma", options.snr_gamma, f"be left out {of}", options.snr_gamma is None or plain),
        (
            "prediction_type",
            asked,
            f"be left out {of}, which has a target of its own",
            asked is None or plain,
        ),
        (
            "compile",
            options.compile,
            "be off with an energy, for it has no second derivative",
            not (energy and options.compile),
        ),
    )
    if name in CONSISTENCY:
        return Consistency(
            ConsistencyTraining(name=name, num_steps=options.max_train_steps, sigma_data=options.sigma_data)
        )
    objective = objective_of(scheduler, options)
    gamma = options.snr_gamma
    if name is None and learned_variance and objective.prediction == "eps":
        objective = replace(objective, learned_variance=True)
    if options.energy is not None:
        return ExplicitEnergy(objective, options.energy)
    if objective.learned_variance:
        require(("snr_gamma", gamma, "be left out for a learned variance", gamma is None))
        return LearnedVariance(objective)
    return Regression(objective, gamma)


def new_scheduler(options: DenoiserOptions) -> Any:
    """The scheduler that samples from a network trained for the options' objective."""
    flow = options.prediction_type == "flow_prediction"
    name = options.objective or ("flow" if flow else "ddpm")
    fits = options.prediction_type is None or flow == (name == "flow")
    require(("prediction_type", options.prediction_type, f"fit the objective {name}", fits))
    if name == "eqm":
        return EquilibriumMatchingScheduler(objective=objective_of(None, options).to_config())
    if name == "uedm":
        return UnifiedScheduler(objective=objective_of(None, options).to_config())
    if name == "edm":
        return EDMEulerScheduler(sigma_data=options.sigma_data, num_train_timesteps=options.ddpm_num_steps)
    if name in CONSISTENCY:
        return ConsistencyScheduler(num_train_timesteps=options.ddpm_num_steps, sigma_data=options.sigma_data)
    if name == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=options.ddpm_num_steps)
    return DDPMScheduler(
        num_train_timesteps=options.ddpm_num_steps,
        beta_schedule=options.ddpm_beta_schedule,
        prediction_type=options.prediction_type or "epsilon",
        variance_type="learned_range" if name == "adm" else "fixed_small",
        clip_sample=options.clip_sample,
        timestep_spacing=options.timestep_spacing,
    )


def kept_scheduler(scheduler: Any, options: DenoiserOptions) -> Any:
    """The pretrained pipeline's scheduler where it is of the asked objective, so that its schedule stays; else a new one."""
    try:
        prediction, process = read_network(scheduler)
    except ValueError:  # not a scheduler that `nag.noise.read` knows
        return new_scheduler(options)
    name, asked = options.objective, options.prediction_type
    if name == "adm" and isinstance(process, DiscreteVP) and prediction == "eps":
        return DDPMScheduler.from_config(scheduler.config, variance_type="learned_range")
    same = {
        "ddpm": isinstance(process, DiscreteVP),
        "flow": isinstance(process, Flow),
        "edm": prediction == "edm" and read_settings(scheduler).get("sigma_data") == options.sigma_data,
    }.get(str(name), False)
    if same and (asked is None or PREDICTIONS[asked] == prediction):
        return scheduler
    return new_scheduler(options)


def pipeline_of(subject: Subject, network: Any, options: DenoiserOptions) -> Any:
    """The pipeline that is saved; it asks the network as it was trained."""
    scheduler = type(subject.scheduler).from_config(subject.scheduler.config)
    if options.objective == "eqm":
        return EqMPipeline(unet=network, scheduler=scheduler, energy=options.energy)
    if options.level_dropout == 1 and subject.pipeline is None:
        return NoiseUnconditionalPipeline(unet=network, scheduler=scheduler)
    if options.objective in ("uedm", "ict", "ecm"):
        return NoiseUnconditionalPipeline(unet=network, scheduler=scheduler, noise_condition=True)
    return subject.pipeline_with(network, scheduler)


def title(scheduler: Any, options: DenoiserOptions) -> str:
    """A line for the model card."""
    kind = "Noise-unconditional" if options.level_dropout == 1 else "Noise-conditional"
    what = {
        "adm": "denoiser with a learned variance",
        "edm": "EDM denoiser",
        "uedm": "uEDM denoiser",
        "ict": "consistency model (iCT)",
        "ecm": "consistency model (ECM)",
        "eqm": "Equilibrium Matching model"
        + (f" with the energy {options.energy}" if options.energy else ""),
    }
    if options.objective in what:
        return f"{kind} {what[options.objective]}"
    return f"{kind} {read_network(scheduler)[0]}-predicting denoiser" + (
        "" if options.level_dropout == 1 else " with noise-level dropout"
    )
