"""Runs the comparisons of docs/evidence.md, one `nag compare` per study; a stop loses at most one cell.

    python examples/evidence/run.py --models outputs/models --data_dir data --output_dir outputs/evidence
    python examples/evidence/run.py ... ddim_50 control          # only these
    python examples/evidence/draw.py                             # docs/evidence.md from docs/evidence/*.json

The embedded model comes with this repository, the others from train.py. What a study has measured goes to
docs/evidence/STUDY.json; rows that were not run are marked so by draw.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent)]

from studies import publish  # noqa: E402

FASHION = Path("examples") / "fashion_mnist"  # seen from ROOT, where the commands run
RESULTS = ROOT / "docs" / "evidence"

PLAIN = ["plain"]
BASELINES = [
    "epsilon_scaling:scale=0.985|0.99|0.995",
    "dcw:scale=-0.002|-0.001|-0.0005",
    "dcw_wavelet:scale=-0.01|-0.005|-0.0025",
]
NAG = ["nag:scale=1|2|3|4,interval=-2.5..4"]
FINER = [  # the best step of a correction gets smaller with the number of steps
    "epsilon_scaling:scale=0.985|0.99|0.995|0.998",
    "dcw:scale=-0.002|-0.001|-0.0005",
    "dcw_wavelet:scale=-0.005|-0.0025|-0.00125",
]
OURS = [*NAG, "calibrated", "nag:scale=3,interval=-2.5..4+calibrated"]
TRAILING = {"scheduler_config": ["timestep_spacing=trailing", "clip_sample=false"]}
FLOW = {"scheduler_config": ["shift=1.0"]}
COMMON: dict[str, Any] = {
    "num_samples": 2000,
    "seeds": [101],
    "tune_samples": 500,
    "mixed_precision": "bf16",
    "resamples": 30,
}
EMBEDDED: dict[str, Any] = {
    "model": FASHION / "model",
    "data": FASHION / "data" / "calibration.parquet",
    "reference": "{data}/fashion_mnist_16/test.parquet",
    "regressor": FASHION / "regressors" / "full",
    "judge": FASHION / "regressors" / "judge",
    "features": FASHION / "model" / "classifier",
}
SMALL = EMBEDDED | {
    "regressor": None,
    "judge": None,
    "shift": False,
    "schedulers": ["ddim"],
    "evaluations": [50],
}
STUDIES: dict[str, dict[str, Any]] = {
    **{
        f"{scheduler}_{budget}": EMBEDDED
        | TRAILING
        | {
            "schedulers": [scheduler],
            "evaluations": [budget],
            "corrections": [*PLAIN, *(FINER if budget == 50 else BASELINES), *OURS],
            "shift": budget == 20,
        }
        for budget in (50, 20)
        for scheduler in ("ddim", "dpm++", "heun", "euler", "ddpm")
    },
    **{
        f"{scheduler}_100": EMBEDDED
        | TRAILING
        | {
            "schedulers": [scheduler],
            "evaluations": [100],
            "num_samples": 1500,
            "tune_samples": 250,
            "shift": False,
            "corrections": [
                *PLAIN,
                "epsilon_scaling:scale=0.995|0.998",
                "dcw:scale=-0.001|-0.0005",
                "dcw_wavelet:scale=-0.0025|-0.00125",
                "nag:scale=1|2,interval=-2.5..4",
            ],
        }
        for scheduler in ("heun", "dpm++", "ddim")
    },
    "plain_100": EMBEDDED
    | TRAILING
    | {
        "schedulers": ["ddim"],
        "evaluations": [40, 100],
        "corrections": PLAIN,
        "shift": False,
    },
    "control": EMBEDDED
    | TRAILING
    | {
        "schedulers": ["ddim"],
        "evaluations": [50],
        "shift": False,
        "num_samples": 1000,
        "tune_samples": 200,
        "corrections": [
            *PLAIN,
            *(
                f"null_autoguidance:scale=3,component={part},interval=-2.5..4"
                for part in ("all", "orthogonal", "along")
            ),
            "autoguidance:scale=0.5|1|2,network={models}/small_eps",
            "self_guidance:scale=0.5|1|3",
            "self_guidance_prev:scale=0.25|0.5|1",
            "time_step_guidance:scale=0.5|1|2",
            "time_shift:window=10|40",
            "noise_level_correction:scale=0.5|1",
        ],
    },
    "forms": EMBEDDED
    | TRAILING
    | {
        "schedulers": ["ddim"],
        "evaluations": [50],
        "num_samples": 1000,
        "tune_samples": 200,
        "shift_samples": 128,
        "regressor": FASHION / "regressors" / "frozen",
        "corrections": [*PLAIN, "nag_corrected:scale=0.5|1|2", "nag_gradient:scale=0.25|1"],
    },
    "weight": EMBEDDED
    | TRAILING
    | {
        "schedulers": ["ddim"],
        "evaluations": [50],
        "num_samples": 1000,
        "shift_samples": 128,
        "corrections": [*PLAIN, *(f"nag:scale={w},interval=-2.5..4" for w in (0.5, 1, 2, 4, 8))],
    },
    "interval": EMBEDDED
    | TRAILING
    | {
        "schedulers": ["ddim"],
        "evaluations": [50],
        "num_samples": 1000,
        "shift": False,
        "corrections": [
            *PLAIN,
            *(f"nag:scale=3,interval={i}" for i in ("..", "-5..4", "-2.5..", "-2.5..2", "0..4")),
        ],
    },
    **{
        f"model_{name}": SMALL
        | (FLOW | {"schedulers": ["flow_euler"]} if name == "small_flow" else TRAILING)
        | {
            "model": f"{{models}}/{name}",
            "evaluations": [50],
            "corrections": [*PLAIN, FINER[0], FINER[2], *NAG],
            "num_samples": 1500,
            "tune_samples": 300,
        }
        for name in ("small_eps", "small_v", "small_flow", "large_eps")
    },
    "model_unconditional": SMALL
    | TRAILING
    | {
        "model": FASHION / "model_unconditional",
        "evaluations": [20],
        "corrections": [*PLAIN, BASELINES[0], BASELINES[2], *NAG],
        "num_samples": 1500,
        "tune_samples": 300,
    },
    **{
        f"dropout_{name}": SMALL
        | TRAILING
        | {
            "model": f"{{models}}/small_ft_{name}",
            "corrections": [*PLAIN, *NAG],
            "num_samples": 1500,
            "tune_samples": 300,
        }
        for name in ("10_40", "10_200", "05_800", "10_800", "20_800", "50_800")
    },
    **{
        f"finetuned_{name}": {
            "model": f"{{models}}/m_{name}",
            "data": f"{{data}}/{name}_16/heldout.parquet",
            "reference": f"{{data}}/{name}_16/test.parquet",
            "features": f"{{data}}/{name}_16_classifier",
            "shift": False,
            "num_samples": 800,
            "tune_samples": 260,
            "schedulers": ["ddim"],
            "evaluations": [30],
            "corrections": [
                *PLAIN,
                *NAG,
                "class_guidance:scale=1.25|1.5|2",
                "nag:scale=2,interval=-2.5..4+class_guidance:scale=1.25|1.5|2",
                f"domain_guidance:guidance_scale=1.25|1.5|2,network={FASHION / 'model'}",
                f"nag:scale=2,interval=-2.5..4+domain_guidance:guidance_scale=1.25|1.5|2,network={FASHION / 'model'}",
            ],
        }
        | TRAILING
        for name in ("mnist", "emoji", "quickdraw")
    },
    **{
        f"calibration_{name}": model
        | TRAILING
        | {
            "shift": False,
            "num_samples": 1000,
            "calibration_samples": 256,
            "schedulers": ["ddim", "dpm++", "deis"],
            "evaluations": [10, 20],
            "corrections": [*PLAIN, "calibrated"],
        }
        for name, model in {
            "fashion_mnist": EMBEDDED,
            **{
                name: {
                    "model": f"{{models}}/m_{name}",
                    "data": f"{{data}}/{name}_16/heldout.parquet",
                    "reference": f"{{data}}/{name}_16/test.parquet",
                    "features": f"{{data}}/{name}_16_classifier",
                }
                for name in ("mnist", "quickdraw")
            },
        }.items()
    },
}


def command(study: str, output: Path, models: Path, data: Path) -> list[str]:
    """The call of `nag compare` for a study."""
    flags = COMMON | STUDIES[study] | {"output_dir": output / study}
    words = ["-m", "nag.cli", "compare", str(flags.pop("model"))]
    for name, value in flags.items():
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return [word.replace("{models}", str(models)).replace("{data}", str(data)) for word in words]


def main(
    studies: Annotated[Positional[tuple[str, ...]], arg(help="Studies to run; default: all.")] = (),
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path("outputs/models"),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16, mnist_16, ...")] = Path("data"),
    output_dir: Annotated[Path, arg(help="Cells and reports.")] = Path("outputs/evidence"),
    show: Annotated[bool, arg(help="Print the commands and run nothing.")] = False,
) -> None:
    """Run the comparisons of docs/evidence.md."""
    unknown = sorted(set(studies or []) - set(STUDIES))
    if unknown:
        raise SystemExit(f"studies must be among {', '.join(STUDIES)}, got {', '.join(unknown)}.")
    for study in studies or STUDIES:
        words = command(study, output_dir, models, data_dir)
        print("nag " + " ".join(words[2:]), flush=True)
        if not show:
            subprocess.run([sys.executable, *words], check=True, cwd=ROOT)
            publish(ROOT / output_dir / study / "compare.json", RESULTS / f"{study}.json")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
