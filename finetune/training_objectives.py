"""From the options of `nag finetune denoiser` to a loss, the scheduler that samples, and the pipeline that is saved.

    objective   loss                    scheduler                             pipeline
    ddpm        |f - r|^2               DDPM                                  UNet2D
    adm         + variational bound     DDPM, learned_range                   UNet2D
    flow        |f - r|^2               flow-matching Euler                   UNet2D
    edm         |f - r|^2               EDM Euler                             UNet2D
    uedm        w_t |f - r|^2           Unified                               NoiseUnconditional
    ict, ecm    consistency             Consistency                           NoiseUnconditional
    eqm         |f - r|^2 or |grad E - r|^2   EquilibriumMatching             EqM

With level dropout 1 every pipeline but EqM's is NoiseUnconditional: the network then knows no level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nag.blind.objectives import Objective
    from nag.finetune.denoiser import DenoiserOptions
    from nag.finetune.losses import Loss

__all__ = [
    "PREDICTIONS",
    "kept_scheduler",
    "loss_of",
    "new_scheduler",
    "objective_of",
    "pipeline_of",
    "read_network",
    "title",
]


PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0", "flow_prediction": "velocity"}
"""The words of --prediction_type in this library's."""


def read_network(scheduler: Any) -> tuple[str, Any]:
    """What the network of a diffusers scheduler predicts, and its training process.

    Raises:
        ValueError: if `nag.noise.read` does not know the scheduler.
    """
    from nag.noise.read import read_levels

    copy = type(scheduler).from_config(scheduler.config)
    copy.set_timesteps(10)
    levels = read_levels(copy)
    return levels.prediction, levels.training


def objective_of(scheduler: Any, options: DenoiserOptions) -> Objective:
    """The regression objective of the options, or that of the scheduler's network where they name none.

    Raises:
        ValueError: if they fit no objective.
    """
    from nag.blind.objectives import Objective, make_objective
    from nag.noise.discrete import DiscreteVP
    from nag.noise.process import Flow

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
    prediction, process = read_network(scheduler)
    if not isinstance(process, (DiscreteVP, Flow)):
        raise ValueError(
            f"scheduler must have a VP or flow training process, got {type(scheduler).__name__}. "
            "Name the --objective to train another."
        )
    return Objective(
        name=name or ("flow" if isinstance(process, Flow) else "ddpm"),
        process=process,
        prediction=prediction,
        num_train_timesteps=scheduler.config.num_train_timesteps,
        learned_variance=name == "adm",
    )


def loss_of(scheduler: Any, options: DenoiserOptions) -> Loss:
    """The loss of the options.

    Raises:
        ValueError: if two options do not go together.
    """
    from nag.blind.consistency import CONSISTENCY, ConsistencyTraining
    from nag.finetune.losses import Consistency, ExplicitEnergy, LearnedVariance, Regression

    if options.energy is not None and options.objective != "eqm":
        raise ValueError(
            f"energy must be left out for objective {options.objective}, got {options.energy!r}. "
            "Only --objective eqm regresses a gradient."
        )
    if options.energy is not None and options.compile:
        raise ValueError(
            f"compile must be off with an energy, got energy {options.energy!r}. torch.compile has no second derivative."
        )
    if options.objective == "eqm" and options.level_dropout != 1:
        raise ValueError(
            f"level_dropout must be 1 for objective eqm, got {options.level_dropout}. Its sampler descends and has no level to "
            "tell."
        )
    if options.null_loss_weight != "uniform" and options.objective not in (None, "ddpm", "flow"):
        raise ValueError(
            f"null_loss_weight must be uniform for objective {options.objective}, got {options.null_loss_weight!r}. "
            "It belongs to the corrected guidance of ddpm."
        )
    if (
        options.objective in ("adm", "eqm", "uedm", "edm", "ict", "ecm")
        and options.prediction_type is not None
    ):
        raise ValueError(
            f"prediction_type must be left out for objective {options.objective}, got {options.prediction_type!r}. "
            "The objective has a target of its own."
        )
    if options.objective in CONSISTENCY:
        training = ConsistencyTraining(
            name=options.objective, num_steps=options.max_train_steps, sigma_data=options.sigma_data
        )
        return Consistency(training)
    objective = objective_of(scheduler, options)
    if options.energy is not None:
        return ExplicitEnergy(objective, options.energy)
    return LearnedVariance(objective) if objective.learned_variance else Regression(objective)


def new_scheduler(options: DenoiserOptions) -> Any:
    """The scheduler that samples from a network trained for the options' objective.

    Raises:
        ValueError: if the prediction type is not one of the objective's.
    """
    from diffusers import (
        DDPMScheduler,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
    )

    name = options.objective or ("flow" if options.prediction_type == "flow_prediction" else "ddpm")
    if (options.prediction_type == "flow_prediction") != (
        name == "flow"
    ) and options.prediction_type is not None:
        raise ValueError(
            f"prediction_type must fit the objective {name}, got {options.prediction_type!r}. Leave it out."
        )
    if name == "eqm":
        from nag.blind import EquilibriumMatchingScheduler

        return EquilibriumMatchingScheduler(objective=objective_of(None, options).to_config())
    if name == "uedm":
        from nag.blind import UnifiedScheduler

        return UnifiedScheduler(objective=objective_of(None, options).to_config())
    if name == "edm":
        return EDMEulerScheduler(sigma_data=options.sigma_data, num_train_timesteps=options.ddpm_num_steps)
    if name in ("ict", "ecm"):
        from nag.blind import ConsistencyScheduler

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
    """The pretrained pipeline's scheduler where it is of the asked objective, so that its schedule stays; else a new one.

    Args:
        scheduler: of the pipeline.
        options: with an objective.

    Raises:
        ValueError: as in `new_scheduler`.
    """
    from diffusers import DDPMScheduler

    from nag.noise.discrete import DiscreteVP
    from nag.noise.process import Flow

    try:
        prediction, process = read_network(scheduler)
    except ValueError:  # not a scheduler that `nag.noise.read` knows
        return new_scheduler(options)
    same = options.prediction_type is None or PREDICTIONS[options.prediction_type] == prediction
    name = options.objective
    if name == "adm" and isinstance(process, DiscreteVP) and prediction == "eps":
        return DDPMScheduler.from_config(scheduler.config, variance_type="learned_range")
    kinds = {
        "ddpm": isinstance(process, DiscreteVP),
        "flow": isinstance(process, Flow),
        "edm": prediction == "edm",
    }
    if (
        same
        and kinds.get(str(name), False)
        and (name != "edm" or scheduler.config.sigma_data == options.sigma_data)
    ):
        return scheduler
    return new_scheduler(options)


def pipeline_of(unet: Any, scheduler: Any, options: DenoiserOptions) -> Any:
    """The pipeline that is saved; it asks the network as it was trained."""
    from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline

    if options.objective == "eqm":
        return EqMPipeline(unet=unet, scheduler=scheduler, energy=options.energy)
    if options.level_dropout == 1:
        return NoiseUnconditionalPipeline(unet=unet, scheduler=scheduler)
    if options.objective in ("uedm", "ict", "ecm"):
        return NoiseUnconditionalPipeline(unet=unet, scheduler=scheduler, noise_condition=True)
    return UNet2DPipeline(unet=unet, scheduler=scheduler)


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
