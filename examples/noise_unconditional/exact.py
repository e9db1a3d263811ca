"""The exact numbers of docs/noise_unconditional.md on Fashion-MNIST: posterior width, and the accumulated error bound.

    python examples/noise_unconditional/exact.py variance --data_dir data
    python examples/noise_unconditional/exact.py bound --data_dir data --models outputs/noise_unconditional/models

variance: states of 50 images at each level, posterior over all training images. bound: 50 first-order steps from
the same noise, with and without the level, for the trained networks and for the exact optima on 2,000 images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from tyro.conf import arg
from tyro.extras import subcommand_cli_from_dict

from nag.blind import UnifiedScheduler
from nag.blind.objectives import make_objective
from nag.files import written_file
from nag.theory import FiniteData, LevelPrior
from nag.theory.bound import accumulated_bound
from nag.theory.concentration import concentration, law_of_spread
from nag.theory.levelwise import check_grid, fisher_information

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "docs" / "noise_unconditional"
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SAMPLERS: dict[str, tuple[str, str, float]] = {  # name: (model, objective, stochasticity)
    "DDIM ODE": ("ddpm", "ddpm", 0.0),
    "DDPM SDE": ("ddpm", "ddpm", 1.0),
    "EDM": ("edm", "edm", 0.0),
    "flow matching": ("flow", "flow", 0.0),
    "uEDM": ("uedm", "uedm", 0.0),
}
DataDir = Annotated[Path, arg(help="Holds fashion_mnist_16.")]


def images(data_dir: Path, count: int | None) -> Tensor:
    """Training images `(N, 1, 16, 16)` in [-1, 1]."""
    from nag.shift.images import load_images

    table = load_images(
        data=data_dir / "fashion_mnist_16" / "train.parquet",
        channels=1,
        resolution=16,
        label_column=None,
        max_samples=count,
    )
    return table.tensor()


def write(name: str, found: dict[str, Any]) -> None:
    """Whole or not at all."""
    with written_file(RESULTS / f"{name}.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def prior_of(objective: Any) -> LevelPrior:
    """The training prior of the levels as a grid fine enough for 256 dimensions."""
    if hasattr(objective.process, "num_train_timesteps"):
        return LevelPrior.timesteps(objective.process)
    return LevelPrior.quadrature(objective.process, density=objective.density, panels=60)


def variance(
    data_dir: DataDir = Path("data"),
    draws: Annotated[int, arg(help="States per level.")] = 50,
    num_images: Annotated[int | None, arg(help="Images; default: all.")] = None,
) -> None:
    """Var[t | z] and E(z) on a flow, beside the laws."""
    data = images(data_dir, num_images)
    flow = make_objective("flow")
    oracle = FiniteData(data=data, process=flow.process, prior=prior_of(flow))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data), generator=generator)[:draws]
    write("variance", by_level(oracle, data[chosen], generator))


@torch.no_grad()
def by_level(oracle: FiniteData, x_0: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Var[t | z], Var[log_snr | z] and E(z) of the velocity over states of each level, and the laws beside them."""
    process, dimension = oracle.process, x_0[0].numel()
    x_0 = x_0.to(oracle.data)
    squared = (x_0**2).flatten(1).sum(1)
    check_grid(oracle, torch.tensor(LEVELS), float(squared.mean()))
    rows = []
    for t in tqdm(torch.tensor(LEVELS, dtype=torch.float64), desc="Concentration", unit="level"):
        eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
        got = concentration(oracle, process.corrupt(x_0, t, eps), {"velocity": "velocity"})
        information = fisher_information(process, t, dimension, squared)
        rows.append(
            {
                "t": float(t),
                "log_snr": float(process.log_snr(t)),
                "variance": mean(got.variance_t),
                "law_noise": float(1 / fisher_information(process, t, dimension)),
                "law_fisher": float((1 / information).mean()),
                "variance_log_snr": mean(got.variance_log_snr),
                "law_log_snr": float((process.log_snr_dot(t) ** 2 / information).mean()),
                "bias": mean(got.mean_t - t),
                "spread": {"velocity": mean(got.spread["velocity"])},
                "law_spread": {"velocity": float(law_of_spread(oracle, "velocity", t, squared).mean())},
                "square": {"velocity": mean(got.square["velocity"])},
            }
        )
    sizes = {"dimension": dimension, "num_data": len(oracle.data), "num_draws": len(x_0)}
    return sizes | {"norm_squared": float(squared.mean()) / dimension, "rows": rows}


def mean(values: Tensor) -> dict[str, float]:
    """With its standard error."""
    return {"mean": float(values.mean()), "standard_error": float(values.std() / len(values) ** 0.5)}


def bound(
    data_dir: DataDir = Path("data"),
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    samples: Annotated[int, arg(help="Trajectories.")] = 16,
    num_images: Annotated[int, arg(help="Images of the exact optima.")] = 2000,
) -> None:
    """The bound beside the true distance of the two samplers' ends."""
    from diffusers import UNet2DModel

    from nag.network.null import null_level

    data, found = images(data_dir, num_images), {}
    for name, (model, kind, stochasticity) in SAMPLERS.items():
        objective = make_objective(kind)
        scheduler = UnifiedScheduler(objective={"name": kind}, solver="euler", stochasticity=stochasticity)
        scheduler.set_timesteps(50)
        steps = scheduler.kappa, scheduler.eta, scheduler.zeta
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(samples, 1, 16, 16, generator=generator, dtype=torch.float64)
        x = x * float(scheduler.init_noise_sigma)
        told_net, blind_net = (
            UNet2DModel.from_pretrained(models / folder, subfolder="unet").eval()
            for folder in (model, f"{model}_blind")
        )
        labels, timesteps = torch.arange(samples) % 10, scheduler.timesteps
        oracle = FiniteData(data=data, process=objective.process, prior=prior_of(objective))

        def told(
            state: Tensor, i: int, net: Any = told_net, t: Tensor = timesteps, y: Tensor = labels
        ) -> Tensor:
            return net(state.float(), t[i], class_labels=y).sample

        def blind(state: Tensor, net: Any = blind_net, y: Tensor = labels) -> Tensor:
            with null_level(net):
                return net(state.float(), torch.zeros(()), class_labels=y).sample

        def exact(state: Tensor, i: int, o: Any = oracle, s: Any = scheduler, c: Any = objective) -> Tensor:
            return o.prediction(state, s.levels[i], c.coefficients)

        def exact_blind(state: Tensor, o: Any = oracle, c: Any = objective) -> Tensor:
            return o.blind(state, c.coefficients, c.weight)

        with torch.no_grad():
            found[name] = {
                "product_of_kappa": float(scheduler.kappa.prod()),
                "network": accumulated_bound(
                    x, *steps, told, blind, generator=generator, progress=True
                ).to_dict(),
                "exact": accumulated_bound(
                    x, *steps, exact, exact_blind, generator=generator, progress=True
                ).to_dict(),
            }
        for kind_of in ("network", "exact"):
            print(name, kind_of, found[name][kind_of]["bound"], found[name][kind_of]["distance"])
        write("bound", {"samples": samples, "num_images": num_images, "steps": 50, "rows": found})


if __name__ == "__main__":
    subcommand_cli_from_dict({"variance": variance, "bound": bound}, use_underscores=True)
