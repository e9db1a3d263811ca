"""Runs the comparisons of docs/one_pass.md, one `nag compare` per study; a stop loses at most one cell.

    python examples/one_pass/run.py --models outputs/one_pass --data_dir data --output_dir outputs/one_pass_runs
    python examples/one_pass/run.py ... ddim_20 dpm++_20         # only these
    python examples/one_pass/draw.py                             # docs/one_pass.md from docs/one_pass/*.json

What a study has measured goes to docs/one_pass/STUDY.json.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples")]

from studies import publish  # noqa: E402

from nag.corrections.reuse import REUSES  # noqa: E402

FASHION = Path("examples") / "fashion_mnist"  # seen from ROOT, where the commands run
RESULTS = ROOT / "docs" / "one_pass"

COMMON: dict[str, Any] = {
    "data": FASHION / "data" / "calibration.parquet",
    "reference": "{data}/fashion_mnist_16/test.parquet",
    "features": FASHION / "model" / "classifier",
    "scheduler_config": ["timestep_spacing=trailing", "clip_sample=false"],
    "num_samples": 2500,
    "seeds": [101, 102, 103, 104],
    "tune_samples": 1000,
    "mixed_precision": "bf16",
    "resamples": 30,
}
STUDENT = "merged:network={models}/student_0,strength=0.5|0.75|1|1.2"
SECOND = "merged:network={models}/student_1,strength=0.5|0.75|1|1.2"
RIVALS = [
    "dcw_wavelet:scale=-0.01|-0.005|-0.0025",
    "epsilon_scaling:scale=0.99|0.995|0.998",
    "higs:scale=0.5|1|2",
    "merged:network={models}/neon,strength=-1|-0.5|-0.25",
]
EXACT = "autoguidance:network={models}/weak_0,scale=0.5|1|2"
NAG = "nag:scale=1|2|3,interval=-2.5..4"
CONTROLS = [
    "merged:network={models}/longer,strength=1",
    "merged:network={models}/shuffled,strength=0.5|1",
]
FEWER = {"seeds": [101, 102], "tune_samples": 500}
ONCE = {"seeds": [101], "tune_samples": 500}
SMALL = FEWER | {"num_samples": 1000, "tune_samples": 300}
CURVE = [f"merged:network={{models}}/student_0,strength={value}" for value in (0.25, 0.5, 1, 1.5)]
REUSED = "autoguidance:network={models}/weak_0,scale=1"
WEAK_MODELS = [
    "null_autoguidance:scale=1|2,interval=-2.5..4",
    "autoguidance:network={models}/weak_0,scale=0.5|1",
    "autoguidance:network={models}/weak_1,scale=0.5|1",
    "blind_autoguidance:network={models}/weak_0,scale=0.25|0.5",
    "autoguidance:network={models}/neon,scale=0.5|1",
    "class_interval:guidance_scale=1.1|1.25",
    "perturbed_attention:scale=0.25|0.5",
    "block_drop:scale=0.25|0.5",
]
SAMPLERS = ("ddim", "dpm++", "heun", "euler", "ddpm")
STUDIES: dict[str, dict[str, Any]] = {
    "ddim_20": {"schedulers": ["ddim"], "evaluations": [20], "corrections": [STUDENT, *RIVALS, EXACT]},
    **{
        f"{name}_20": {
            "schedulers": [name],
            "evaluations": [20],
            "corrections": [STUDENT, RIVALS[0], RIVALS[-1]],
        }
        for name in SAMPLERS[1:3]
    },
    "euler_20": {
        "schedulers": ["euler"],
        "evaluations": [20],
        "corrections": [STUDENT, RIVALS[0], RIVALS[-1], SECOND],
    },
    "ddpm_20": SMALL
    | {
        "schedulers": ["ddpm"],
        "evaluations": [20],
        "corrections": [
            "merged:network={models}/student_0,strength=0.25|0.5",
            "dcw_wavelet:scale=-0.01|0.01",
            "merged:network={models}/neon,strength=-0.5|-0.25",
        ],
    },
    **{
        f"{name}_20_others": ONCE
        | {"schedulers": [name], "evaluations": [20], "corrections": [*RIVALS[1:3], EXACT]}
        for name in SAMPLERS[1:]
    },
    "controls": {"schedulers": ["ddim"], "evaluations": [20], "corrections": [SECOND, *CONTROLS, NAG]},
    "long": {
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [20],
        "seeds": [101, 102],
        "corrections": ["merged:network={models}/student_long,strength=0.5|0.75|1|1.2"],
    },
    # with the strength that `long` has chosen, for the share that it keeps
    "long_share": SMALL
    | {
        "schedulers": ["ddim"],
        "evaluations": [20],
        "corrections": ["merged:network={models}/student_long,strength=1"],
    },
    "students": SMALL
    | {
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [20],
        "corrections": [
            "merged:network={models}/soup,strength=0.5|0.75|1|1.2",
            "merged:network={models}/student_mild,strength=0.5|1|1.5|2",
        ],
    },
    "second": {"schedulers": ["dpm++", "heun"], "evaluations": [20], "corrections": [SECOND]},
    "curve": {
        "schedulers": ["ddim", "dpm++", "heun"],
        "evaluations": [20],
        "corrections": CURVE,
        "seeds": [105],
        "num_samples": 1000,
    },
    **{
        f"{name}_10": FEWER
        | {"schedulers": [name], "evaluations": [10], "corrections": [STUDENT, RIVALS[0], EXACT]}
        for name in ("ddim", "dpm++")
    },
    **{
        f"{name}_{budget}": SMALL
        | {
            "schedulers": [name],
            "evaluations": [budget],
            "corrections": [
                STUDENT.replace("0.5|0.75|1|1.2", "0.25|0.5|1"),
                "dcw_wavelet:scale=-0.005|-0.0025",
                EXACT.replace("0.5|1|2", "0.5|1"),
            ],
        }
        for budget in (50, 100)
        for name in ("ddim", "dpm++")
    },
    "heads": SMALL
    | {
        "schedulers": ["ddim"],
        "evaluations": [20],
        "corrections": [
            CONTROLS[-1],
            "direction:head={models}/direction,scale=1|2",
            "exit_head:head={models}/exit,scale=0.25|0.5|1",
            # with the strengths that DDIM 20 has chosen, for the shares that one pass keeps
            "merged:network={models}/student_0,strength=1.2",
            "merged:network={models}/student_1,strength=0.5",
        ],
    },
    # with the weight that DDIM 20 has chosen
    "heads_dpm++": SMALL
    | {
        "schedulers": ["dpm++"],
        "evaluations": [20],
        "corrections": ["exit_head:head={models}/exit,scale=0.25"],
    },
    "heads_second": SMALL
    | {
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [20],
        "corrections": [
            "exit_head:head={models}/exit_1,scale=0.125|0.25|0.5",
            "direction:head={models}/direction_1,scale=1|2",
        ],
    },
    "heads_long": SMALL
    | {
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [20],
        "corrections": ["exit_head:head={models}/exit_long,scale=0.125|0.25|0.5"],
    },
    "head_null": SMALL
    | {
        "schedulers": ["ddim"],
        "evaluations": [20],
        "corrections": ["direction:head={models}/direction_null,scale=1|2|3"],
    },
    # budgets that pay for 20 steps whose weak prediction is fresh at every step, at every second, at every fourth
    "reuse_1": SMALL | {"schedulers": ["ddim"], "evaluations": [25], "corrections": [REUSED]},
    **{
        name: SMALL
        | {
            "schedulers": ["ddim"],
            "evaluations": [budget],
            "corrections": [f"{REUSED},every={every},reuse={how}" for how in ways],
        }
        for name, every, budget, ways in (("reuse_2", 2, 23, REUSES[:1]), ("reuse_4", 4, 22, REUSES))
    },
    "weak_models": ONCE
    | {
        "num_samples": 1500,
        "tune_samples": 300,
        "schedulers": ["ddim"],
        "evaluations": [20],
        "corrections": WEAK_MODELS,
    },
    "more_steps": {
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [40, 80],
        "corrections": [],
        "seeds": [101, 102],
    },
    "others": FEWER
    | {
        "schedulers": ["ddim"],
        "evaluations": [20],
        "corrections": [
            "merged:network={models}/student_null,strength=0.5|0.75|1|1.2",
            "merged:network={models}/student_lora,strength=0.5|0.75|1|1.2",
        ],
    },
}

SETS = ("mnist", "quickdraw")
for _name in SETS:
    _models = f"{{models}}/{_name}_"
    STUDIES[f"{_name}_20"] = SMALL | {
        "model": f"{_models}model",
        "data": f"{{data}}/{_name}_16/heldout.parquet",
        "reference": f"{{data}}/{_name}_16/test.parquet",
        "features": f"{{data}}/{_name}_16_classifier",
        "num_samples": 2000,
        "schedulers": ["ddim", "dpm++"],
        "evaluations": [20],
        "corrections": [
            f"merged:network={_models}student_0,strength=0.5|0.75|1|1.2",
            *RIVALS[:3],
            f"autoguidance:network={_models}weak_0,scale=0.5|1|2",
        ],
    }


# `nag weak-check` of the weak models that the study weak_models guides by
SCREEN: dict[str, Any] = {
    "data": COMMON["data"],
    "num_images": 300,
    "scheduler": "ddim",
    "weak": [re.sub("[:,](guidance_)?scale=.*", "", one) for one in WEAK_MODELS],
    "comparison": RESULTS.relative_to(ROOT) / "weak_models.json",
    "overwrite": [],
}


def command(study: str, output: Path, models: Path, data: Path) -> list[str]:
    """The call of `nag compare` for a study, or of `nag weak-check`."""
    if study == "weak_check":
        flags, words = SCREEN, ["-m", "nag.cli", "weak-check", str(FASHION / "model")]
    else:
        flags = COMMON | STUDIES[study]
        flags["corrections"] = ["plain", *flags["corrections"]]
        words = ["-m", "nag.cli", "compare", str(flags.pop("model", FASHION / "model")), "--no_shift"]
    flags = flags | {"output_dir": output / study}
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return [word.replace("{models}", str(models)).replace("{data}", str(data)) for word in words]


def main(
    studies: Annotated[Positional[tuple[str, ...]], arg(help="Studies to run; default: all.")] = (),
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path("outputs/one_pass"),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="Cells and reports.")] = Path("outputs/one_pass_runs"),
    show: Annotated[bool, arg(help="Print the commands and run nothing.")] = False,
) -> None:
    """Run the comparisons of docs/one_pass.md."""
    known = [*STUDIES, "weak_check"]
    unknown = sorted(set(studies) - set(known))
    if unknown:
        raise SystemExit(f"studies must be among {', '.join(known)}, got {', '.join(unknown)}.")
    for study in studies or known:
        words = command(study, output_dir, models, data_dir)
        print("nag " + " ".join(words[2:]), flush=True)
        if not show:
            subprocess.run([sys.executable, *words], check=True, cwd=ROOT)
            name, left_out = ("weak_check", ("rows",)) if study == "weak_check" else ("compare", ())
            publish(ROOT / output_dir / study / f"{name}.json", RESULTS / f"{study}.json", left_out=left_out)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
