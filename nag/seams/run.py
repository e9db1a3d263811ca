"""One run: a pipeline's steps heard, and a list of corrections acting at each of them.

    set_timesteps        the run begins: levels are read when they are first needed
    network(u, t, ...)   first question of a step: the level is set, directions are asked for
                         every question of it: told that level, and the sum of the directions is added to each of its rows
    step(value, t, x)    predictions in turn; relevelled if a level was set; the scheduler's own step; states in turn

The index of a step is the scheduler's own, or else counted; never looked up by a timestep, which may occur twice.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nag.corrections.base import HIDDEN, At, Correction, overrides
from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.corrections.calibration import Calibrated
from nag.network.table import row_of, unwrap
from nag.noise.read import SchedulerLevels, read_levels
from nag.noise.relevel import relevel
from nag.seams.asking import Call, output_with, rows_of
from nag.seams.layouts import TOLD, Layout, layout_of, same_timestep
from nag.seams.listening import heard, is_heard, tapped
from nag.seams.question import AskedQuestion, Unheard, split_prediction

__all__ = ["Diverged", "Run", "corrected", "denoisers", "first_question"]

_log = logging.getLogger("nag")
_DENOISER = re.compile(r"(unet|transformer|prior|decoder|denoiser|dit)(_\d+)?")
_BESIDE = re.compile(r".*(controlnet|encoder|vae|movq|projection|connector).*")
_IMAGES = ("prepare_latents", "prepare_intermediate_images")


class Diverged(RuntimeError):
    """Samples that are not finite any more."""


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks that a pipeline asks at every step of its scheduler, by component name."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(unwrap(part), nn.Module)}

    def asked(name: str, part: Any) -> bool:
        known = row_of(part) is not None
        own_scheduler = f"{name}_scheduler" in pipe.components
        return (
            not own_scheduler and not _BESIDE.fullmatch(name) and (known or bool(_DENOISER.fullmatch(name)))
        )

    return {name: part for name, part in parts.items() if asked(name, part)}


@contextmanager
def corrected(
    pipe: Any,
    *corrections: Correction,
    regressor: Any = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    sampler: dict[str, Any] | None = None,
) -> Iterator[Run]:
    """Within the block, corrections act in every call of a diffusers pipeline, and in any loop over its parts.

    The pipeline is used as ever, with any of its arguments. Afterwards nothing is left, also after an exception; with nothing
    switched on nothing is touched at all.

    Args:
        pipe: any pipeline with one scheduler, modular ones too.
        corrections: of `nag.corrections`. Directions add up; predictions and states are passed on in this order.
        regressor: for corrections that need one; default: the pipeline's own, if it has one.
        generator: for corrections that draw noise; default: what the pipeline prepares its latents with.
        sampler: `eta` and `guidance_scale` of the calls, for calibrations, where the pipeline does not say.

    Raises:
        TypeError: if something else is among the corrections.
        ValueError: if the pipeline has no scheduler or no denoiser, or corrections do not go together; at the first question, if
            one does not fit the network or the sampler.
        RuntimeError: if another block listens to one of its networks already, or no question of it was heard.
        Diverged: at the end of a run whose states are not finite.

    Example:
        ```python
        pipe = StableDiffusionXLPipeline.from_pretrained(...)
        with nag.corrected(pipe, NoiseGuidance(scale=1.0)):
            images = pipe("a cat", num_inference_steps=30).images
        ```
    """
    run = Run(pipe, corrections, regressor=regressor, generator=generator, sampler=sampler)
    if not run.corrections:
        yield run
        return
    run.find()
    with run.listening():
        yield run
        run.ended()


class _Stopped(Exception):
    """Ends a rehearsal."""


def first_question(
    pipe: Any,
    call: Callable[[], Any],
    *corrections: Correction,
    regressor: Any = None,
    sampler: dict[str, Any] | None = None,
) -> At:
    """The first question that a call of a pipeline puts to its network, before anything is asked: prompts are encoded, corrections
    checked, and the call ends there.

    Args:
        pipe: any pipeline that `corrected` takes.
        call: calls it.
        corrections: to be checked.
        regressor: as of `corrected`.
        sampler: as of `corrected`.

    Raises:
        ValueError: whatever pipeline or corrections refuse.
        RuntimeError: if no question was heard.
    """
    run = Run(pipe, corrections, regressor=regressor, sampler=sampler)
    run.find()
    run.rehearsal = True
    with run.listening():
        try:
            call()
        except _Stopped:
            assert run.at is not None
            return run.at
    raise RuntimeError(
        f"{type(pipe).__name__} must ask its network at least once, got a call that never does."
    )


class Run:
    """What a `with` block hears and does; see the module's text."""

    def __init__(
        self,
        pipe: Any,
        corrections: Sequence[Correction],
        *,
        regressor: Any = None,
        generator: Any = None,
        sampler: dict[str, Any] | None = None,
    ) -> None:
        for one in corrections:
            if not isinstance(one, Correction):
                raise TypeError(
                    f"corrections must be of nag.corrections, got {type(one).__name__}. "
                    "Pass for example EpsilonScaling(scale=1.005)."
                )
        self.corrections = tuple(_found(one, pipe) for one in corrections if one.on)
        self.pipe, self.generator = pipe, generator
        self.regressor = getattr(pipe, "regressor", None) if regressor is None else regressor
        setters = [type(one).__name__ for one in self.corrections if overrides(one, "level")]
        if len(setters) > 1:
            raise ValueError(
                f"corrections must hold at most one that sets the level, got {', '.join(setters)}. Choose one."
            )
        self.sampler, self.sets_level, self.rehearsal = dict(sampler or {}), bool(setters), False

    def find(self) -> None:
        """Finds scheduler and denoisers."""
        pipe = self.pipe
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        self.modules = denoisers(pipe)
        if self.scheduler is None or not hasattr(self.scheduler, "step") or not self.modules:
            raise ValueError(
                f"pipe must have one scheduler with a `step`, and a denoiser, got {type(pipe).__name__} with "
                f"{', '.join(pipe.components) or 'no components'}. Two schedulers in one pipeline cannot be told apart."
            )
        self.layout: Layout = layout_of(pipe)
        self.beside: list[nn.Module] = []
        if self.sets_level:
            self.beside = [
                part
                for name, part in pipe.components.items()
                if "controlnet" in name and isinstance(part, nn.Module) and not is_heard(part)
            ]
        self._step_signature = inspect.signature(self.scheduler.step)
        self._restart()
        self.heard_steps = self.heard_questions = self.unheard = 0
        self.foreign = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, the pipeline's questions and steps come here first."""
        with ExitStack() as stack:
            for module in self.modules.values():
                stack.enter_context(heard(module, self.asked))
            for module in self.beside:
                stack.enter_context(heard(module, self.asked_beside))
            stack.enter_context(tapped(self.scheduler, "set_timesteps", self.began))
            stack.enter_context(tapped(self.scheduler, "step", self.stepped))
            for name in _IMAGES:
                if hasattr(self.pipe, name):
                    stack.enter_context(tapped(self.pipe, name, self.prepared))
            yield

    def _restart(self) -> None:
        """A call of the pipeline begins: nothing is known of its levels, images and labels."""
        self.at: At | None = None
        self.start: int | None = None
        self.done = 0
        self.batch: int | None = None
        self.state_shape: tuple[int, ...] | None = None
        self.rule: Callable[[Tensor, float], Tensor] | None = None
        self.question_count: int | None = None
        self.found: SchedulerLevels | ValueError | None = None
        self.rows = 0
        self.directed: Tensor | None = None
        self.memories: list[dict[str, Any]] = [{} for _ in self.corrections]
        self.checked = False
        self.finite: list[tuple[int, Tensor]] = []
        self.acted = False

    # What is heard

    def prepared(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline has prepared its images: so many there are, of this shape."""
        output = plain(*args, **kwargs)
        first = output[self.layout.state] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            self.batch, self.state_shape = len(first), tuple(first.shape)
        if self.generator is None:
            try:
                self.drawn_with = inspect.signature(plain).bind(*args, **kwargs).arguments.get("generator")
            except TypeError:
                self.drawn_with = None
        return output

    drawn_with: Any = None
    busy = False

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def began(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Timesteps are set: a new run."""
        self.ended()
        batch, shape = (self.batch, self.state_shape) if self.heard_steps == 0 else (None, None)
        self._restart()
        self.batch, self.state_shape = batch, shape
        return plain(*args, **kwargs)

    def asked(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline asks a denoiser; what a correction asks by itself, of a regressor say, is none of its questions."""
        if self.busy or getattr(self.scheduler, "timesteps", None) is None:
            return plain(*args, **kwargs)
        with self._busy():
            return self._answered(module, plain, args, kwargs)

    def _answered(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        call = Call(module, plain, args, kwargs)
        if not self._of_this_step(call):
            self.foreign = True
            return plain(*args, **kwargs)
        self.heard_questions += 1
        first = self.at is None
        if self.at is None:
            self.at = self._first(call)
            if self.rehearsal:
                raise _Stopped
        at = self.at
        question = at.question
        assert isinstance(question, AskedQuestion)
        if not first:
            question = AskedQuestion(
                self, self._at_level(call, at), max(len(call.sample) // len(at.question), 1)
            )
            question.hidden = self.hidden
        if first:
            for memory, one in zip(self.memories, self.corrections, strict=True):
                if overrides(one, "direction"):
                    at.memory = memory
                    found = one.direction(at)
                    if found is not None:
                        self.directed = found if self.directed is None else self.directed + found
                        self.acted = True
        answer = question.whole()
        if self.directed is None:
            return answer
        rows = rows_of(answer)
        value, rest = split_prediction(rows, self.channels(call))
        exact = torch.promote_types(value.dtype, torch.float32)
        change = self.directed.to(exact) * self.layout.sign
        repeated = change.repeat(len(value) // len(change), *[1] * (change.ndim - 1))
        value = (value.to(exact) + repeated).to(value.dtype)
        return output_with(answer, value if rest is None else torch.cat([value, rest], dim=1))

    def asked_beside(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A ControlNet is told the level that a correction has set."""
        call = Call(module, plain, args, kwargs)
        if call.timestep is None or not self._of_this_step(call):
            return plain(*args, **kwargs)
        if self.at is None or self.at.level is None:
            level = next((one for one in self.corrections if isinstance(one, Calibrated)), None)
            if level is None or self._levels() is None:
                return plain(*args, **kwargs)
            at = self._seen(call)
            self.question_count = None  # its rows are not those of the denoiser
            self._check(at, setting=True)
            at.memory = self.memories[self.corrections.index(level)]
            at.level = level.level(at)  # type: ignore[assignment]
            return plain(*args, **kwargs) if at.level is None else self._at_level(call, at).answer()
        return self._at_level(call, self.at).answer()

    def stepped(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline steps."""
        with self._busy():
            return self._stepped(plain, args, kwargs)

    def _stepped(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        bound = self._step_signature.bind(*args, **kwargs)
        value, x = bound.arguments.get("model_output"), bound.arguments.get("sample")
        if not isinstance(value, Tensor) or not isinstance(x, Tensor):
            return plain(*args, **kwargs)
        self.heard_steps += 1
        at = self.at
        if at is None:  # no question was heard since the last step: it can only be watched
            self.unheard += self.foreign
            at = self._watched(x)
        at.x, at.rows = x, self.rows / max(len(at.question), 1)
        at.last = at.last or at.i == len(self.scheduler.timesteps) - 1
        self._check_rows(at, x)
        self._check_eta(bound)
        relevelled = at.level is not None
        acting = [
            (one, memory)
            for one, memory in zip(self.corrections, self.memories, strict=True)
            if overrides(one, "prediction") or overrides(one, "state")
        ]
        prediction, rest = split_prediction(value, x.shape[1]) if x.ndim > 3 else (value, None)
        before, level = prediction, at.level
        if acting or relevelled:
            self._in_step(at, x)
        for one, memory in acting:
            at.memory = memory
            prediction = one.prediction(at, prediction)
        guided, state = prediction, x
        if relevelled:
            levels = at.levels
            state, prediction = relevel(levels, at.i, at.level, prediction, at.u)  # type: ignore[arg-type]
        if prediction is not before or state is not x:
            bound.arguments["model_output"] = (
                prediction if rest is None else torch.cat([prediction, rest], dim=1)
            )
            bound.arguments["sample"] = state
            self.acted = True
        output = plain(*bound.args, **bound.kwargs)
        reached = output[0] if isinstance(output, tuple) else output.prev_sample
        movers = [(one, memory) for one, memory in acting if overrides(one, "state")]
        if movers:
            x_0_hat, _ = at.x_0_and_eps(guided)
            moved = reached
            for one, memory in movers:
                at.memory = memory
                moved = one.state(at, moved, x_0_hat).to(reached.dtype)
            if moved is not reached:
                self.acted = True
                output = _reached(output, moved)
                reached = moved
        at.level = level
        self.finite.append((at.i, torch.stack([x.isfinite().all(), reached.isfinite().all()])))
        self.done, self.at, self.directed, self.rows, self.foreign = self.done + 1, None, None, 0, False
        return output

    def ended(self) -> None:
        """A run is over: say what went wrong in it without a word."""
        finite, self.finite = getattr(self, "finite", []), []
        if not self.corrections:
            return
        flags = (
            torch.stack([flag.cpu() for _, flag in finite]) if finite else torch.ones(0, 2, dtype=torch.bool)
        )
        for (i, _), (before, after) in zip(finite, flags.tolist(), strict=True):
            if not before or not after:
                where = f"before step {i}: the latents that it was given" if not before else f"in step {i}"
                raise Diverged(
                    f"states must stay finite, got inf or nan {where} of {len(self.scheduler.timesteps)}. Lower the scale of the "
                    "corrections, or take more steps."
                )
        if finite and not self.acted and any(overrides(one, "direction") for one in self.corrections):
            _log.warning(
                "No step of this run lay within the interval of %s: the images are those of plain sampling. Widen the interval, or "
                "raise an image-to-image strength.",
                ", ".join(type(one).__name__ for one in self.corrections if overrides(one, "direction")),
            )
        acts = any(overrides(one, place) for one in self.corrections for place in ("direction", "level"))
        if acts and self.unheard:
            raise RuntimeError(
                f"{type(self.pipe).__name__} must tell its network a level that follows from its scheduler's timesteps, got "
                f"another one in {self.unheard} of {self.heard_steps} steps, which were not corrected. It cannot be corrected yet."
            )
        if acts and self.heard_steps and not self.heard_questions:
            raise RuntimeError(
                f"{type(self.pipe).__name__} must call its {', '.join(self.modules)} to be corrected, got steps "
                "without a question. Does it copy its network?"
            )

    # What is known of a step

    def count(self, rows: int) -> None:
        """So many samples went through a network."""
        self.rows += rows

    def _levels(self) -> SchedulerLevels | None:
        if self.found is None:
            try:
                self.found = read_levels(self.scheduler)
            except ValueError as error:
                self.found = error
        return None if isinstance(self.found, ValueError) else self.found

    def _index(self, timestep: Tensor | None) -> int:
        """Index of the step that comes."""
        own = getattr(self.scheduler, "step_index", None)
        if own is not None:
            return int(own)
        if self.start is None:
            begin = getattr(self.scheduler, "begin_index", None)
            if begin is not None:
                self.start = int(begin)
            else:
                self.start = 0
                if timestep is not None and self.rule is not None:
                    nominal = self.rule(self.scheduler.timesteps.double(), self._count())
                    told = timestep.double().reshape(-1)[-1]
                    places = same_timestep(nominal, told.expand_as(nominal)).nonzero()
                    self.start = int(places[0]) if len(places) else 0
        return self.start + self.done

    def _count(self) -> float:
        return float(self.scheduler.config.get("num_train_timesteps", 1000))

    def _of_this_step(self, call: Call) -> bool:
        """Whether a call is told this step's level; finds out at the first one how it is told."""
        if call.timestep is None or call.timestep.numel() == 0:
            return self.rule is None and self.at is None and call.row is not None
        timesteps = torch.as_tensor(self.scheduler.timesteps)
        if self.rule is None:
            hint = getattr(call.row, "told", "t")
            rules = [hint, *(name for name in TOLD if name != hint)]
            for name in rules:
                nominal = TOLD[name](timesteps.double().cpu(), self._count())
                told = call.timestep.detach().double().cpu().reshape(-1, 1)
                if bool(same_timestep(told, nominal[None].expand(len(told), -1)).any()):
                    self.rule = TOLD[name]
                    break
            else:
                return False
        elif call.timestep.device.type != "cpu":
            return True  # a comparison would stall the device
        i = self._index(call.timestep)
        if i >= len(timesteps):
            return False
        nominal = self.rule(timesteps[i].double(), self._count())
        return bool(same_timestep(call.timestep, nominal.expand_as(call.timestep)).any())

    def told(self, timestep: Tensor) -> Tensor:
        """A timestep of the scheduler as this pipeline tells it."""
        assert self.rule is not None
        return self.rule(timestep.double(), self._count()).float()

    def channels(self, call: Call) -> int:
        """Channels of the state."""
        if self.state_shape is not None and len(self.state_shape) == call.sample.ndim:
            return self.state_shape[1]
        return call.sample.shape[1]

    def _questions(self, call: Call) -> int:
        """How many questions one call puts."""
        if self.question_count is None:
            rows = len(call.sample)
            if self.batch:
                self.question_count = max(rows // self.batch, 1)
            elif self.layout.questions:
                self.question_count = self.layout.questions
            else:
                half = rows // 2
                equal = rows % 2 == 0 and torch.equal(call.sample[:half], call.sample[half:])
                self.question_count = 2 if equal else 1
        return self.question_count

    def _watched(self, x: Tensor) -> At:
        """A step of which no question was heard."""
        self._levels()
        assert self.found is not None
        timesteps, i = self.scheduler.timesteps, self._index(None)
        return At(
            i=i,
            question=Unheard(),
            u=x,
            scheduler=self.scheduler,
            found=self.found,
            regressor=self.regressor,
            timestep=timesteps[min(i, len(timesteps) - 1)],
            last=i == len(timesteps) - 1,
        )

    def _seen(self, call: Call) -> At:
        """A step, before anything is asked."""
        self._levels()
        assert self.found is not None
        question = AskedQuestion(self, call, self._questions(call))
        u = call.sample[question.block]
        channels = self.channels(call)
        if u.ndim > 3 and u.shape[1] > channels:
            u = u[:, :channels]  # inpainting and the like: the state comes first
        i = self._index(call.timestep)
        timesteps = self.scheduler.timesteps
        return At(
            i=i,
            question=question,
            u=u,
            scheduler=self.scheduler,
            found=self.found,
            regressor=self.regressor,
            generator=self.generator if self.generator is not None else self.drawn_with,
            timestep=timesteps[min(i, len(timesteps) - 1)],
            last=i == len(timesteps) - 1,
            sampler=self._sampler(),
        )

    def _first(self, call: Call) -> At:
        """The first question of a step: everything is checked once, the level is set."""
        at = self._seen(call)
        self._check(at, setting=True)
        self.hidden = False
        for memory, one in zip(self.memories, self.corrections, strict=True):
            if overrides(one, "level"):
                at.memory = memory
                level = one.level(at)
                self.hidden = isinstance(level, str) and level == HIDDEN
                at.level = None if isinstance(level, str) else level
        if at.level is not None or self.hidden:
            self.acted = True
            question = AskedQuestion(self, self._at_level(call, at), at.question.questions)  # type: ignore[attr-defined]
            question.hidden = self.hidden
            at.question = question
        self._check(at, setting=False)
        self.checked = True
        return at

    hidden = False

    def _at_level(self, call: Call, at: At) -> Call:
        """A call of this step, told the level that a correction has set."""
        if at.level is None:
            return call
        assert self.rule is not None
        nominal = self.rule(torch.as_tensor(self.scheduler.timesteps)[at.i].double(), self._count())
        level = at.levels.timestep_of(torch.as_tensor(at.level)).float()
        told = self.told(level)

        def change(timestep: Tensor) -> Tensor:
            new = told.to(timestep.device)
            if new.ndim and len(call.sample) != len(new):
                new = new.repeat(len(call.sample) // len(new))
            if timestep.ndim == 0 or (new.ndim and timestep.shape != new.shape):
                return new
            same = same_timestep(timestep, nominal.expand_as(timestep))
            return torch.where(same, new.expand_as(timestep), timestep.float())

        return call.retold(change)

    def _in_step(self, at: At, x: Tensor) -> None:
        """From here on a correction sees the state itself, in network-input coordinates."""
        if isinstance(at.found, ValueError):
            at.u = x
            return
        scale = float(at.found.input_scale[at.i])
        at.u = x if scale == 1 else x * scale
        if isinstance(at.level, Tensor) and at.level.ndim and len(at.level) != len(x):
            at.level = at.level.repeat(len(x) // len(at.level))

    def _sampler(self) -> dict[str, Any]:
        """What is known of the sampler besides its scheduler, for calibrations."""
        if not any(isinstance(one, Calibrated) for one in self.corrections):
            return {}
        found = dict(self.sampler)
        if "guidance_scale" not in found:
            own = getattr(self.pipe, "guidance_scale", None)
            if isinstance(own, int | float):
                found["guidance_scale"] = float(own)
        found["corrections"] = tuple(
            one.settings() for one in self.corrections if not isinstance(one, Calibrated) and not one.watches
        )
        return found

    # What is refused

    def _check(self, at: At, *, setting: bool) -> None:
        """Asks those that set the level, or the others, whether they fit; once in a run."""
        if self.checked:
            return
        for memory, one in zip(self.memories, self.corrections, strict=True):
            if overrides(one, "level") != setting:
                continue
            at.memory = memory
            moves = overrides(one, "state")
            if moves and not at.two_stages and at.levels.own_state is not None:
                raise ValueError(
                    f"scheduler must step from the state it is handed for {type(one).__name__}, got "
                    f"{type(self.scheduler).__name__}. Use DDIM, Euler or DPMSolverMultistep."
                )
            one.check(at)

    def _check_rows(self, at: At, x: Tensor) -> None:
        size = len(at.question)
        if self.directed is not None and len(x) not in (size, len(at.question.call.sample)):  # type: ignore[attr-defined]
            raise ValueError(
                f"conditional rows must be as many as the {len(x)} states, got {size} in a call of "
                f"{len(at.question.call.sample)} of {type(self.pipe).__name__}. "  # type: ignore[attr-defined]
                "Its layout needs a row in nag/seams/layouts.py."
            )

    def _check_eta(self, bound: inspect.BoundArguments) -> None:
        """A table of another eta is refused at the first step, which is where the scheduler is told it."""
        if self.done or "eta" not in bound.arguments or "eta" in self.sampler:
            return
        for one in self.corrections:
            table: Any = getattr(one, "table", None)
            if hasattr(table, "eta") and table.eta != bound.arguments["eta"]:
                table.check(self.scheduler, eta=float(bound.arguments["eta"]))


def _found(one: Correction, pipe: Any) -> Correction:
    """A correction; a calibration "auto" by the file beside the pipeline's checkpoint."""
    if not (isinstance(one, Calibrated) and one.table == "auto"):
        return one
    known = getattr(pipe, "noise_calibration_path", None)
    beside = Path(str(getattr(pipe, "name_or_path", "")), CALIBRATION_FILE)
    if known is None and not beside.is_file():
        raise ValueError(
            f"noise_calibration must lie beside the checkpoint to be found by 'auto', got no {CALIBRATION_FILE} in "
            f"{getattr(pipe, 'name_or_path', '')!r}. Measure one with `nag calibrate`, or give its path."
        )
    return replace(one, table=known or beside)


def _reached(output: Any, x: Tensor) -> Any:
    """What `scheduler.step` returned, with another state."""
    if isinstance(output, tuple):
        return (x, *output[1:])
    changed = copy(output)
    changed.prev_sample = x
    return changed
