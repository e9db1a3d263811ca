"""What docs/noise_unconditional.md samples: networks, samplers and numbers of steps, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ROWS", "TABLES", "Row", "load"]


def _ddpm(**config: Any) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(clip_sample=False, timestep_spacing="trailing", **config)


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)


def _unified(name: str, solver: str) -> Any:
    from nag.blind import UnifiedScheduler

    return UnifiedScheduler(objective={"name": name}, solver=solver)


def _consistency() -> Any:
    from nag.blind import ConsistencyScheduler

    return ConsistencyScheduler()


def _descent(decay: str, **config: Any) -> Any:
    from nag.blind import EquilibriumMatchingScheduler

    parameters: dict[str, Any] = {"decay": decay} | ({"start": 1.4} if decay == "piecewise" else {})
    return EquilibriumMatchingScheduler(objective={"name": "eqm", **parameters}, **config)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Args:
        table: which.
        method: what is trained.
        sampler: what samples it.
        models: names of train.py: with the level (None: there is none) and without.
        scheduler: makes the scheduler.
        steps: sampling steps.
        arguments: for the pipeline.
        precise: sample in float32, for fields that are gradients.
    """

    table: str
    method: str
    sampler: str
    models: tuple[str | None, str]
    scheduler: Callable[[], Any]
    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)
    precise: bool = False

    @property
    def name(self) -> str:
        """One word for files and flags."""
        return f"{self.table}-{self.method}-{self.sampler}".lower().replace(" ", "_").replace(",", "")


def load(models: Path, name: str, row: Row) -> Any:
    """The pipeline of one of train.py's models, with the row's sampler; a blind twin and its model share the class."""
    from nag.load import NAGPipeline
    from nag.pipelines import NoiseUnconditionalPipeline

    pipe = NAGPipeline.from_pretrained(models / name)
    if hasattr(pipe, "regressor"):
        pipe = NoiseUnconditionalPipeline.from_pipe(pipe)
    pipe.scheduler = row.scheduler()
    pipe.unet.eval()
    return pipe


def _pair(name: str) -> tuple[str, str]:
    return name, f"{name}_blind"


ROWS: tuple[Row, ...] = (
    *(
        Row(
            table="quality",
            method=method,
            sampler=sampler,
            models=_pair(model),
            scheduler=make,
            steps=steps,
            **more,
        )
        for method, sampler, model, make, steps, more in (
            ("iDDPM", "SDE 100", "ddpm", _ddpm, 100, {}),
            ("DDIM", "ODE 50", "ddpm", _ddim, 50, {}),
            ("DDIM", "SDE 50", "ddpm", _ddim, 50, {"arguments": {"eta": 1.0}}),
            ("DDIM", "ODE 100", "ddpm", _ddim, 100, {}),
            ("ADM", "SDE 100", "adm", lambda: _ddpm(variance_type="learned_range"), 100, {}),
            ("EDM", "Euler 50", "edm", lambda: _unified("edm", "euler"), 50, {}),
            ("EDM", "Heun 35", "edm", lambda: _unified("edm", "heun"), 18, {}),
            ("flow matching", "Euler 50", "flow", lambda: _unified("flow", "euler"), 50, {}),
            ("flow matching", "Heun 49", "flow", lambda: _unified("flow", "heun"), 25, {}),
            ("uEDM", "Euler 50", "uedm", lambda: _unified("uedm", "euler"), 50, {}),
            ("uEDM", "Heun 35", "uedm", lambda: _unified("uedm", "heun"), 18, {}),
            ("uEDM w = 1", "Euler 50", "uedm_uniform", lambda: _unified("uedm", "euler"), 50, {}),
            ("uEDM w = 1", "Heun 35", "uedm_uniform", lambda: _unified("uedm", "heun"), 18, {}),
            ("iCT", "2", "ict", _consistency, 2, {}),
            ("ECM", "2", "ecm", _consistency, 2, {}),
        )
    ),
    *(
        Row(
            table="stochasticity",
            method="DDIM",
            sampler=f"eta {eta}",
            models=_pair("ddpm"),
            scheduler=_ddim,
            steps=50,
            arguments={"eta": eta},
        )
        for eta in (0.0, 0.25, 0.5, 0.75, 1.0)
    ),
    *(
        Row(
            table="decay",
            method=f"EqM {decay}",
            sampler="descent 100",
            models=(None, f"eqm_{decay}"),
            scheduler=lambda decay=decay: _descent(decay),
            steps=100,
        )
        for decay in ("constant", "linear", "truncated", "piecewise")
    ),
    *(
        Row(
            table="decay",
            method=f"EqM-E {energy}",
            sampler="descent 100",
            models=(None, f"eqm_{energy}"),
            scheduler=lambda: _descent("truncated"),
            steps=100,
            precise=True,
        )
        for energy in ("dot", "squared_norm")
    ),
    *(
        Row(
            table="descent",
            method=solver,
            sampler=f"{steps} steps",
            models=(None, "eqm_truncated"),
            scheduler=lambda solver=solver: _descent("truncated", solver=solver),
            steps=steps,
        )
        for steps in (25, 50, 100, 200)
        for solver in ("gradient_descent", "look_ahead", "nesterov")
    ),
    *(
        Row(
            table="step_size",
            method="gradient_descent",
            sampler=f"100 steps of {size}",
            models=(None, "eqm_truncated"),
            scheduler=lambda size=size: _descent("truncated", step_size=size),
            steps=100,
        )
        for size in (0.0025, 0.005, 0.0075, 0.01, 0.02)
    ),
    *(
        Row(
            table="adaptive",
            method="gradient_descent",
            sampler=f"|f| <= {threshold}",
            models=(None, "eqm_truncated"),
            scheduler=lambda: _descent("truncated", step_size=0.005),
            steps=200,
            arguments={"gradient_norm_threshold": threshold},
        )
        for threshold in (2.0, 4.0, 8.0, 16.0)
    ),
)
TABLES = tuple(dict.fromkeys(row.table for row in ROWS))
