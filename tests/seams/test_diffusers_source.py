"""The laws of a corrected run in every pipeline test case of diffusers that needs no file of the Hub.

Runs where DIFFUSERS_SOURCE names a source tree of diffusers:

    DIFFUSERS_SOURCE=~/diffusers NAG_COMPATIBILITY=compatibility.json pytest -m slow tests/seams/test_diffusers_source.py
    python -m tests.seams.compatibility compatibility.json > docs/compatibility.md
"""

import copy
import inspect
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import PeftAdapterMixin
from peft import LoraConfig
from torch import Tensor, nn

import nag
from nag.corrections import Calibrated, Correction
from nag.corrections.base import PURE_NOISE
from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels
from tests.seams.case import Case
from tests.seams.diffusers_cases import Found, find
from tests.seams.exhibit import SCALE, Watch, everywhere
from tests.seams.layout import DENOISERS, NotFound, Seen, blocks_of, is_linear, layout_of, look
from tests.seams.parts import redraw
from tests.seams.reference import guided_by_hand
from tests.seams.stand_ins import AbsentFile, standing_in
from tests.seams.traces import traces

SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
PASSED = "yes"
SMALLER: dict[str, dict[str, Any]] = {"animatediff.AnimateDiffPipelineSDXLFastTests": {"num_frames": 2}}
LARGE = ("bria_fibo.BriaFiboPipelineFastTests", "bria_fibo_edit.BriaFiboPipelineFastTests")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="DIFFUSERS_SOURCE must name a source tree of diffusers"),
    pytest.mark.filterwarnings("ignore"),  # diffusers warns at its own dummies in a hundred ways
]

FOUND: list[Found] = []
ABSENT: dict[str, str] = {}
if SOURCE:
    with standing_in(), warnings.catch_warnings(action="ignore"):  # as the tests themselves; see above
        FOUND, ABSENT = find(Path(SOURCE))


@dataclass
class Verdict:
    """What holds for one case: "yes", or the reason why it does not apply."""

    case: str
    pipeline: str
    networks: list[str] = field(default_factory=list)
    scheduler: str = ""
    runs: str = PASSED
    off: str = ""
    classifier_free: str = ""
    calibrated: str = ""
    recorded: str = ""
    gradient: str = ""
    class_guidance: str = ""
    lora: str = ""


VERDICTS: dict[str, Verdict] = {}


def tensors(value: Any) -> list[Tensor]:
    """All numbers in whatever a pipeline returns."""
    if isinstance(value, Tensor):
        return [value.detach().double().flatten()]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [torch.as_tensor(value).double().flatten()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [one for item in value for one in tensors(item)]
    if hasattr(value, "getdata"):
        return [torch.as_tensor(np.asarray(value)).double().flatten()]
    return []


class Radius:
    """p(log_snr | x) proportional to exp(-|x|^2 e^(log_snr / 2) / 20), a regressor with the gradient -x e^(log_snr / 2) / 10."""

    def log_posterior(self, x: Tensor, log_snr: Tensor, class_labels: Any = None, **_: Any) -> Tensor:
        return -(x**2).flatten(1).sum(1) * (log_snr / 2).exp() / 20


class Subject:
    """A pipeline, perhaps with a LoRA, and the call that diffusers tests it with, with some arguments changed."""

    def __init__(self, found: Found, *, lora: bool = False, **changed: Any) -> None:
        self.found, self.latent, self.redrawn = found, True, True
        self.lora, self.changed = lora, SMALLER.get(found.name, {}) | changed
        self.pipe = self.build(redrawn=True)
        try:
            self.plain = self.run()
        except Exception:  # some pipelines have no latents to return
            self.latent = False
            self.plain = self.run()
        if not self.plain.isfinite().all():
            self.redrawn, self.pipe = False, self.build(redrawn=False)
            self.plain = self.run()
        if not self.plain.isfinite().all():
            raise ArithmeticError("its result is not finite")

    def build(self, *, redrawn: bool) -> Any:
        """The pipeline, for evaluation; diffusers' dummies leave many layers at zero, so that nothing matters."""
        with standing_in():
            pipe = self.found.build()
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                part.eval()
                if redrawn and re.fullmatch(DENOISERS, name):
                    redraw(part)
        if self.lora:
            for network in self.networks(pipe):
                add_lora(network)
        return pipe

    def networks(self, pipe: Any) -> list[nn.Module]:
        """The denoisers of a pipeline."""
        return [
            part
            for name, part in pipe.components.items()
            if part is not None and re.fullmatch(DENOISERS, name)
        ]

    @cached_property
    def seen(self) -> Seen:
        """What was heard in a plain call of a twin."""
        return look(self.twin(), self.run)

    def twin(self) -> Any:
        """The same pipeline once more."""
        try:
            return copy.deepcopy(self.pipe)
        except RuntimeError:  # weight normalisation cannot be copied
            return self.build(redrawn=self.redrawn)

    def run(self, pipe: Any = None) -> Tensor:
        """One call, with the seed of all calls."""
        pipe = self.pipe if pipe is None else pipe
        with standing_in():
            torch.manual_seed(0)
            arguments = self.found.arguments()
            if self.latent and "output_type" in arguments:
                arguments["output_type"] = "latent"
            arguments |= self.changed
            torch.manual_seed(0)
            return torch.cat(tensors(pipe(**arguments, return_dict=False)))

    def corrected(self, *corrections: Correction) -> Tensor:
        """One call under corrections."""
        with nag.corrected(self.pipe, *corrections, regressor=Radius()):
            return self.run()


def add_lora(network: Any) -> None:
    """A LoRA of random factors on all linear layers but those that diffusers calls with `input=`, which peft does not know."""
    linear = [
        name
        for name, part in network.named_modules()
        if type(part) is nn.Linear and not re.search(r"motion_modules.*proj_(in|out)", name)
    ]
    torch.manual_seed(1)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=linear, init_lora_weights=False))
    network.eval().requires_grad_(True)


def by_hand(subject: Subject) -> Tensor:
    """The guided result, after the layout that was found by looking."""
    layout = layout_of(subject.seen)
    case = Case(
        name=subject.found.name,
        build=subject.found.build,
        arguments=subject.found.arguments,
        levels=layout.levels,
        rows=layout.rows,
        channels=layout.channels,
    )
    seen = guided_by_hand(subject.twin(), case, SCALE, copied=False, untouched=subject.seen.noise)
    return subject.run(seen.pipe)


def slope(levels: SchedulerLevels, i: int) -> float:
    """lambda of a prediction at a level, by hand: it is affine in the score s, (c/alpha) u - lambda s."""
    alpha, sigma = float(levels.network_alpha[i]), float(levels.network_sigma[i])
    if levels.prediction == "eps":
        return levels.prediction_scale * sigma
    if levels.prediction in ("v", "velocity"):  # alpha^2 + sigma^2 = 1, alpha + sigma = 1
        return levels.prediction_scale * sigma / alpha
    if levels.prediction == "x_0":
        return -levels.prediction_scale * sigma**2 / alpha
    raise NotFound(f"no formula by hand for the prediction {levels.prediction}")


def gradient_by_hand(subject: Subject) -> Tensor:
    """The result if what the scheduler is handed is changed by -w lambda grad log p(log_snr | u), u = its scaled state."""
    pipe = subject.twin()
    step, i = pipe.scheduler.step, -1

    def stepped(*arguments: Any, **options: Any) -> Any:
        nonlocal i
        given = inspect.signature(step).bind(*arguments, **options).arguments
        value, x = given["model_output"], given["sample"]
        levels = read_levels(pipe.scheduler)
        places = (pipe.scheduler.timesteps.cpu() == torch.as_tensor(given["timestep"]).cpu()).nonzero()
        places = [int(place) for place in places]
        i = next((place for place in places if place > i), places[0])
        if levels.log_snr[i] > PURE_NOISE:
            change = x * (SCALE * slope(levels, i) * float((levels.log_snr[i] / 2).exp()) / 10)
            value = value.clone()
            value[:, : x.shape[1]] += change * float(levels.input_scale[i])
        return step(**given | {"model_output": value})

    stepped.__wrapped__ = step  # type: ignore[attr-defined]
    pipe.scheduler.step = stepped
    return subject.run(pipe)


def in_words(refusal: Exception) -> str:
    """A refusal that says what must hold is a reason; any other exception is a failure."""
    if "must" not in str(refusal):
        raise refusal
    return f"refused: {refusal}"


def guided(
    subject: Subject, mode: str = "classifier_free", hand: Callable[[Subject], Tensor] = by_hand
) -> str:
    """Whether guidance is that by hand; a refusal in words is a reason, anything else a failure."""
    try:
        output = subject.corrected(everywhere(SCALE, mode=mode, project=False, max_norm=None))
    except (ValueError, RuntimeError) as refusal:
        return in_words(refusal)
    reference = hand(subject)
    change = (reference - subject.plain).abs().max().item()
    if change < 1e-4 * subject.plain.abs().max().item():
        raise NotFound("guidance does not change what its tiny call gives")
    torch.testing.assert_close(output, reference, rtol=0, atol=2e-3 * change)
    return PASSED


def gradient(subject: Subject) -> str:
    """Whether guidance by a regressor's gradient is that by hand."""
    try:
        return guided(subject, "gradient", gradient_by_hand)
    except AssertionError:  # a change of the rows is not the same change of what the scheduler is handed
        if is_linear(subject.seen):
            raise
        raise NotFound("its class guidance is not linear in the rows that its network answers") from None


def by_either(subject: Subject) -> str:
    """Whether guidance is that by hand: classifier-free, or by a gradient where that does not apply."""
    found = law(guided, subject)
    if found == PASSED:
        return found
    other = law(gradient, subject)
    return other if other == PASSED else found


def has_class_guidance(subject: Subject) -> bool:
    """Whether several rows are asked for each state of a step, or a guidance scale is told to a distilled network."""
    for network in subject.networks(subject.pipe):
        config: Any = getattr(network, "config", {})
        if config.get("guidance_embeds") or config.get("time_cond_proj_dim"):
            return True
    blocks, _ = blocks_of(subject.seen)
    return blocks > 1 or len(subject.seen.answers[0]) > 1


def class_guided(subject: Subject) -> str:
    """Whether guidance is that by hand on top of the pipeline's own class guidance, which is switched on if it is off."""
    if not has_class_guidance(subject):
        parameters = inspect.signature(subject.pipe.__call__).parameters
        scale = next((name for name in ("true_cfg_scale", "guidance_scale") if name in parameters), None)
        if scale is None:
            return "its call takes no guidance scale"
        changed: dict[str, Any] = {scale: 3.0}
        if scale == "true_cfg_scale" and "negative_prompt" in parameters:
            changed["negative_prompt"] = "b"
        subject = Subject(subject.found, **changed)
        if not has_class_guidance(subject):
            return f"its {scale} is told to distilled networks alone, and the tiny one is none"
    return by_either(subject)


def adapted(subject: Subject) -> str:
    """Whether off is bit-identical, and guidance that by hand, with a LoRA."""
    for network in subject.networks(subject.pipe):
        if not isinstance(network, PeftAdapterMixin):
            return f"{type(network).__name__} takes no adapter in diffusers"
    adapted = Subject(subject.found, lora=True)
    if torch.equal(adapted.plain, subject.plain):
        raise NotFound("its tiny call gives the same with a LoRA")
    for off in (everywhere(0.0), Watch()):
        torch.testing.assert_close(adapted.corrected(off), adapted.plain, rtol=0, atol=0)
    return by_either(adapted)


def calibrated(subject: Subject) -> str:
    """Whether a nominal table changes nothing."""
    levels = read_levels(subject.pipe.scheduler)
    try:
        output = subject.corrected(Calibrated(levels.log_snr.tolist()))
    except (ValueError, RuntimeError) as refusal:
        return in_words(refusal)
    if levels.timestep_mismatch().abs().max() > 1e-2:
        return "its labels are not those of its levels"
    size = subject.plain.abs().max().item()
    torch.testing.assert_close(output, subject.plain, rtol=0, atol=2e-3 * size)
    return PASSED


def law(holds: Callable[[Subject], str], subject: Subject) -> str:
    """A law's verdict, with the reason where it does not apply."""
    try:
        return holds(subject)
    except NotFound as reason:
        return f"not tested: {reason}"
    except ValueError as refusal:  # a scheduler whose levels are not read
        return in_words(refusal)


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.name)
def test_laws(found: Found) -> None:
    verdict = VERDICTS[found.name] = Verdict(found.name, found.cls.pipeline_class.__name__)  # type: ignore[attr-defined]
    if found.name in LARGE:
        verdict.runs = "its text encoder is a large one"
        pytest.skip(verdict.runs)
    try:
        subject = Subject(found)
    except AbsentFile as absent:
        verdict.runs = f"no {absent}"
        pytest.skip(verdict.runs)
    except Exception as error:
        verdict.runs = f"plain diffusers: {type(error).__name__}: {(str(error) or '-').splitlines()[0][:120]}"
        pytest.skip(verdict.runs)
    pipe = subject.pipe
    verdict.networks = [type(network).__name__ for network in subject.networks(pipe)]
    verdict.scheduler = type(getattr(pipe, "scheduler", None)).__name__
    before, watch = traces(pipe), Watch()
    for off in (everywhere(0.0), watch):
        try:
            output = subject.corrected(off)
        except ValueError as refusal:
            verdict.off = in_words(refusal)
            pytest.skip(verdict.off)
        if off is watch and not torch.equal(subject.seen.output, subject.plain):
            verdict.off = "its plain result is not repeatable"
            pytest.skip(verdict.off)
        torch.testing.assert_close(output, subject.plain, rtol=0, atol=0)
    verdict.off = PASSED
    assert len(watch.states) == len(subject.seen.states)
    for state, reference in zip(watch.states, subject.seen.states, strict=True):
        torch.testing.assert_close(state, reference, rtol=0, atol=0)
    verdict.recorded = PASSED if watch.states else "its scheduler does not step"
    failed = []
    laws = {
        "classifier_free": guided,
        "calibrated": calibrated,
        "gradient": gradient,
        "class_guidance": class_guided,
        "lora": adapted,
    }
    for name, holds in laws.items():
        try:
            setattr(verdict, name, law(holds, subject))
        except Exception as error:
            setattr(verdict, name, f"FAILS: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            failed.append(f"{name}: {error}")
    assert traces(pipe) == before
    torch.testing.assert_close(subject.run(), subject.plain, rtol=0, atol=0)
    assert not failed, "\n".join(failed)


def test_enough_cases_ran() -> None:
    """After all others: writes the table down, and fails where too little of it was tried."""
    report = {
        "modules that do not import": ABSENT,
        "cases": [asdict(verdict) for verdict in VERDICTS.values()],
    }
    path = os.environ.get("NAG_COMPATIBILITY")
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    ran = [verdict for verdict in VERDICTS.values() if verdict.off == PASSED]
    if len(VERDICTS) == len(FOUND):
        assert len(ran) >= 165, f"{len(ran)} cases ran"
        for name, least in (
            ("classifier_free", 120),
            ("gradient", 150),
            ("class_guidance", 130),
            ("lora", 140),
        ):
            assert sum(getattr(verdict, name) == PASSED for verdict in ran) >= least
