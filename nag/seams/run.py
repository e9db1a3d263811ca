"""One run: a pipeline's steps heard, and a list of corrections acting at each of them.

set_timesteps        the run begins: levels are read when they are first needed
network(u, t, ...)   first question of a step: the level is set, directions are asked for
                     every question of it: told that level, and the sum of the directions is added to each of its rows
step(value, t, x)    predictions in turn; relevelled if a level was set; the scheduler's own step; states in turn
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
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from nag.corrections.base import HIDDEN, At, Correction, overrides
from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.corrections.calibration import Calibrated
from nag.corrections.merged import Merged
from nag.corrections.noise_guidance import NoiseGuidance
from nag.network.merged import with_weights
from nag.network.table import row_of, unwrap
from nag.noise.relevel import relevel
from nag.seams.asking import Call, output_with, rows_of
from nag.seams.clock import Clock
from nag.seams.layouts import layout_of
from nag.seams.listening import heard, is_heard, tapped
from nag.seams.question import AskedQuestion, Unheard, split_prediction

__all__ = [
    "AUTOENCODERS",
    "Diverged",
    "Run",
    "autoencoder_of",
    "beside_checkpoint",
    "corrected",
    "denoisers",
    "first_question",
]

_log = logging.getLogger("nag")
_DENOISER = re.compile(r"(unet|transformer|prior|decoder|denoiser|dit)(_\d+)?")
_BESIDE = re.compile(r".*(controlnet|encoder|vae|movq|projection|connector).*")
AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")
"""Components between latents and images, as diffusers' pipelines call them."""
_IMAGES = ("prepare_latents", "prepare_intermediate_images")


class Diverged(RuntimeError):
    """Samples that are not finite any more."""


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks that a pipeline asks at every step of its scheduler, by component name."""
    return {
        name: part
        for name, part in pipe.components.items()
        if isinstance(unwrap(part), nn.Module)
        and (row_of(part) is not None or _DENOISER.fullmatch(name))
        and not _BESIDE.fullmatch(name)
        and f"{name}_scheduler" not in pipe.components
    }


def autoencoder_of(pipe: Any) -> nn.Module | None:
    """The network between a pipeline's latents and its images; None for one whose states are images."""
    parts = (pipe.components.get(name) for name in AUTOENCODERS)
    return next((part for part in parts if part is not None), None)


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
    """The first question that a call of a pipeline puts to its network; corrections are checked, and the call ends there.

    Raises:
        ValueError: whatever pipeline or corrections refuse.
        RuntimeError: if no question was heard.
    """
    run = Run(pipe, corrections, regressor=regressor, sampler=sampler, rehearsal=True)
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
        rehearsal: bool = False,
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
        self.sampler, self.rehearsal = dict(sampler or {}), rehearsal
        setters = [type(one).__name__ for one in self.corrections if overrides(one, "level")]
        if len(setters) > 1:
            raise ValueError(
                f"corrections must hold at most one that sets the level, got {', '.join(setters)}. Choose one."
            )
        self.merges = any(overrides(one, "weights") for one in self.corrections)
        if self.merges and getattr(getattr(self.regressor, "config", None), "kind", None) == "frozen":
            for one in self.corrections:
                if isinstance(one, NoiseGuidance) and one.mode != "classifier_free":
                    raise ValueError(
                        f"regressor must not be of kind 'frozen' for noise_guidance_mode {one.mode!r} with merged weights, got "
                        "one: it reads features of its own. Use kind 'full' or 'encoder'."
                    )
        self.sets_level, self.busy, self.drawn_with = bool(setters), False, None
        self.listens = {one.listens for one in self.corrections} - {None}
        self.heard_steps = self.heard_questions = self.unheard = 0
        self.finite: list[tuple[int, Tensor]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, the pipeline's questions and steps come here first."""
        pipe = self.pipe
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        self.modules = denoisers(pipe)
        if self.scheduler is None or not hasattr(self.scheduler, "step") or not self.modules:
            raise ValueError(
                f"pipe must have one scheduler with a `step`, and a denoiser, got {type(pipe).__name__} with "
                f"{', '.join(pipe.components) or 'no components'}. Two schedulers in one pipeline cannot be told apart."
            )
        self.layout = layout_of(pipe)
        self._step_signature = inspect.signature(self.scheduler.step)
        self._restart()
        networks = [unwrap(module) for module in self.modules.values()] if self.merges else []
        self._own = [
            (one, {n: w.data for n, w in one.state_dict(keep_vars=True).items()}) for one in networks
        ]
        with ExitStack() as stack:
            for module in self.modules.values():
                stack.enter_context(heard(module, self.asked))
                for one in self.corrections:
                    stack.enter_context(one.weights(unwrap(module)))
            for name, part in pipe.components.items() if self.sets_level else ():
                if "controlnet" in name and isinstance(part, nn.Module) and not is_heard(part):
                    stack.enter_context(heard(part, self.asked_beside))
            stack.enter_context(tapped(self.scheduler, "set_timesteps", self.began))
            stack.enter_context(tapped(self.scheduler, "step", self.stepped))
            parts = (part for part in vars(pipe).values() if isinstance(part, DiffusionPipeline))
            for owner in (pipe, *parts):
                for name in _IMAGES:
                    if hasattr(owner, name):
                        stack.enter_context(tapped(owner, name, self.prepared))
            yield

    def _restart(self) -> None:
        """A call of the pipeline begins: nothing is known of its levels and images."""
        self.clock = Clock(self.scheduler)
        self.memories: list[dict[str, Any]] = [{} for _ in self.corrections]
        self.state_shape: tuple[int, ...] | None = None
        self.questions: int | None = None
        self.finite = []
        self.checked = self.acted = False
        self._next_step()

    def _next_step(self) -> None:
        self.at: At | None = None
        self.directed: Tensor | None = None
        self.rows, self.foreign, self.hidden = 0, False, False

    def _acting(self, at: At, *places: str) -> Iterator[Correction]:
        """The corrections that act at one of some places, each with its memory."""
        for memory, one in zip(self.memories, self.corrections, strict=True):
            if any(overrides(one, place) for place in places):
                at.memory = memory
                yield one

    @contextmanager
    def _own_weights(self) -> Iterator[None]:
        with ExitStack() as stack:
            for network, weights in self._own:
                stack.enter_context(with_weights(network, weights))
            yield

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    # What is heard

    def prepared(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline has prepared its images: so many there are, of this shape."""
        output = plain(*args, **kwargs)
        first = output[self.layout.state] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            self.state_shape = tuple(first.shape)
        try:
            self.drawn_with = inspect.signature(plain).bind(*args, **kwargs).arguments.get("generator")
        except TypeError:
            self.drawn_with = None
        return output

    def began(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Timesteps are set: a new run."""
        self.ended()
        shape = self.state_shape if self.heard_steps == 0 else None
        self._restart()
        self.state_shape = shape
        return plain(*args, **kwargs)

    def asked(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline asks a denoiser; what a correction asks by itself, of a regressor say, is none of its questions."""
        if self.busy or getattr(self.scheduler, "timesteps", None) is None:
            return plain(*args, **kwargs)
        with self._busy():
            return self._answered(Call(module, plain, args, kwargs))

    def _answered(self, call: Call) -> Any:
        again = self.at is not None
        if not self.clock.tells(call) or (again and call.timestep is None):
            self.foreign = True
            return call.answer()
        self.heard_questions += 1
        if self.at is None:
            self.at = at = self._first(call)
            if self.rehearsal:
                raise _Stopped
            for one in self._acting(at, "direction"):
                found = one.direction(at)
                if found is not None:
                    self.directed, self.acted = (
                        found if self.directed is None else self.directed + found,
                        True,
                    )
        at = self.at
        question = at.question
        assert isinstance(question, AskedQuestion)
        if again:
            blocks = max(len(call.sample) // len(question), 1)
            question = AskedQuestion(self, self._at_level(call, at), blocks, hidden=self.hidden)
        answer = question.whole()
        if self.directed is None:
            return answer
        value, rest = split_prediction(rows_of(answer), self.channels(call))
        exact = torch.promote_types(value.dtype, torch.float32)
        change = self.directed.to(exact) * self.layout.sign
        repeated = change.repeat(len(value) // len(change), *[1] * (change.ndim - 1))
        value = (value.to(exact) + repeated).to(value.dtype)
        axis = 1 if value.ndim > 3 else -1
        return output_with(answer, value if rest is None else torch.cat([value, rest], dim=axis))

    def asked_beside(self, module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A ControlNet is told the level that a correction has set."""
        call = Call(module, plain, args, kwargs)
        if call.timestep is None or not self.clock.tells(call):
            return call.answer()
        at = self.at
        if at is None or at.level is None:
            setter = next((one for one in self.corrections if isinstance(one, Calibrated)), None)
            if setter is None or isinstance(self.clock.levels, ValueError):
                return call.answer()
            at = self._seen(call)
            self.questions = None  # its rows are not those of the denoiser
            self._check(at, setting=True)
            for one in self._acting(at, "level"):
                at.level = one.level(at)  # type: ignore[assignment]
        return call.answer() if at.level is None else self._at_level(call, at).answer()

    def stepped(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline steps."""
        bound = self._step_signature.bind(*args, **kwargs)
        value, x = bound.arguments.get("model_output"), bound.arguments.get("sample")
        if not isinstance(value, Tensor) or not isinstance(x, Tensor):
            return plain(*args, **kwargs)
        with self._busy():
            return self._stepped(plain, bound, value, x)

    def _stepped(
        self, plain: Callable[..., Any], bound: inspect.BoundArguments, value: Tensor, x: Tensor
    ) -> Any:
        self.heard_steps += 1
        at = self.at
        if at is None:  # no question was heard since the last step: it can only be watched
            self.unheard += self.foreign
            at = self._at(Unheard(), x, None)
        at.x, at.rows = x, self.rows / max(len(at.question), 1)
        at.last = at.last or at.i == len(self.clock.timesteps) - 1
        self._check_step(at, x, bound)
        given, rest = split_prediction(value, x.shape[1]) if x.ndim > 3 else (value, None)
        level, prediction, state = at.level, given, x
        acting = list(self._acting(at, "prediction", "state"))
        if acting or level is not None:
            self._in_step(at, x)
        for one in self._acting(at, "prediction", "state"):
            prediction = one.prediction(at, prediction)
        guided = prediction
        if at.level is not None:
            state, prediction = relevel(at.levels, at.i, at.level, prediction, at.u)
        if prediction is not given or state is not x:
            whole = prediction if rest is None else torch.cat([prediction, rest], dim=1)
            bound.arguments |= {"model_output": whole, "sample": state}
            self.acted = True
        output = plain(*bound.args, **bound.kwargs)
        reached = output[0] if isinstance(output, tuple) else output.prev_sample
        if any(overrides(one, "state") for one in acting):
            x_0_hat, _ = at.x_0_and_eps(guided)
            moved = reached
            for one in self._acting(at, "state"):
                moved = one.state(at, moved, x_0_hat).to(reached.dtype)
            if moved is not reached:
                output, reached, self.acted = _reached(output, moved), moved, True
        at.level = level
        self.finite.append((at.i, torch.stack([x.isfinite().all(), reached.isfinite().all()])))
        self.clock.done += 1
        self._next_step()
        return output

    def ended(self) -> None:
        """A run is over: say what went wrong in it without a word."""
        finite, self.finite = self.finite, []
        for i, flags in finite:
            before, after = flags.tolist()
            if not (before and after):
                where = f"in step {i}" if before else f"before step {i}: the latents that it was given"
                raise Diverged(
                    f"states must stay finite, got inf or nan {where} of {len(self.clock.timesteps)}. Lower the scale of the "
                    "corrections, or take more steps."
                )
        directing = [type(one).__name__ for one in self.corrections if overrides(one, "direction")]
        if finite and directing and not self.acted:
            _log.warning(
                "No step of this run lay within the interval of %s: the images are those of plain sampling. Widen the interval, or "
                "raise an image-to-image strength.",
                ", ".join(directing),
            )
        if (directing or self.sets_level) and self.unheard:
            raise RuntimeError(
                f"{type(self.pipe).__name__} must tell its network a level that follows from its scheduler's timesteps, got "
                f"another one in {self.unheard} of {self.heard_steps} steps, which were not corrected. It cannot be corrected yet."
            )
        if (directing or self.sets_level) and self.heard_steps and not self.heard_questions:
            raise RuntimeError(
                f"{type(self.pipe).__name__} must call its {', '.join(self.modules)} to be corrected, got steps "
                "without a question. Does it copy its network?"
            )

    # What is known of a step

    def count(self, rows: int) -> None:
        """So many samples went through a network."""
        self.rows += rows

    def channels(self, call: Call) -> int:
        """Channels of the state, or the width of its tokens."""
        shape = self.state_shape
        if shape is None or len(shape) != call.sample.ndim:
            shape = call.sample.shape
        return shape[-1] if len(shape) == 3 else shape[1]

    def state_in(self, u: Tensor, call: Call) -> Tensor:
        """The state in an input, as a view: in inpainting and the like a mask or a picture stands beside it."""
        shape, channels = self.state_shape, self.channels(call)
        if u.ndim > 3 and u.shape[1] > channels:
            return u[:, -channels:] if self.layout.state_last else u[:, :channels]
        if shape is None or len(shape) != u.ndim:
            return u
        config = getattr(unwrap(call.network), "config", None)
        taken = getattr(config, "in_channels", None)  # of packed tokens, of frames that come first
        axis = next((k for k in range(1, u.ndim) if u.shape[k] == taken and shape[k] < u.shape[k]), None)
        return u if axis is None else u.narrow(axis, 0, shape[axis])

    def _blocks(self, call: Call) -> int:
        """How many questions one call puts."""
        if self.questions is None:
            rows = len(call.sample)
            half = rows // 2
            if self.state_shape is not None and self.state_shape[0]:
                self.questions = max(rows // self.state_shape[0], 1)
            elif self.layout.questions:
                self.questions = self.layout.questions
            else:
                equal = rows % 2 == 0 and torch.equal(call.sample[:half], call.sample[half:])
                self.questions = 2 if equal else 1
        return self.questions

    def _at(self, question: AskedQuestion, u: Tensor, told: Tensor | None) -> At:
        timesteps, i = self.clock.timesteps, self.clock.index(told)
        return At(
            i=i,
            question=question,
            u=u,
            scheduler=self.scheduler,
            found=self.clock.levels,
            regressor=self.regressor,
            generator=self.drawn_with if self.generator is None else self.generator,
            timestep=timesteps[min(i, len(timesteps) - 1)],
            last=i == len(timesteps) - 1,
            sampler=self._sampler(),
            own_weights=self._own_weights,
        )

    def _seen(self, call: Call) -> At:
        """A step, before anything is asked."""
        question = AskedQuestion(self, call, self._blocks(call))
        return self._at(question, self.state_in(call.sample[question.block], call), call.timestep)

    def _first(self, call: Call) -> At:
        """The first question of a step: everything is checked once, the level is set."""
        at = self._seen(call)
        self._check(at, setting=True)
        for one in self._acting(at, "level"):
            level = one.level(at)
            self.hidden = isinstance(level, str) and level == HIDDEN
            at.level = None if isinstance(level, str) else level
        if at.level is not None or self.hidden:
            self.acted = True
            asked = self._at_level(call, at)
            at.question = AskedQuestion(self, asked, self._blocks(call), hidden=self.hidden)
        self._check(at, setting=False)
        self.checked = True
        return at

    def _at_level(self, call: Call, at: At) -> Call:
        """A call of this step, told the level that a correction has set."""
        return call if at.level is None else self.clock.at_level(call, at.i, at.level)

    def _in_step(self, at: At, x: Tensor) -> None:
        """From here on a correction sees the state itself, in network-input coordinates."""
        scale = 1.0 if isinstance(at.found, ValueError) else float(at.found.input_scale[at.i])
        at.u = x if scale == 1 else x * scale
        if isinstance(at.level, Tensor) and at.level.ndim and len(at.level) != len(x):
            at.level = at.level.repeat(len(x) // len(at.level))

    def _sampler(self) -> dict[str, Any]:
        """What is known of the sampler besides its scheduler, for calibrations."""
        if not any(isinstance(one, Calibrated) for one in self.corrections):
            return {}
        own = getattr(self.pipe, "guidance_scale", None)
        found = {"guidance_scale": float(own)} if isinstance(own, int | float) else {}
        others = (one for one in self.corrections if not isinstance(one, Calibrated) and not one.watches)
        return found | self.sampler | {"corrections": tuple(one.settings() for one in others)}

    # What is refused

    def _check(self, at: At, *, setting: bool) -> None:
        """Asks those that set the level, or the others, whether they fit; once in a run."""
        if self.checked:
            return
        for memory, one in zip(self.memories, self.corrections, strict=True):
            if overrides(one, "level") != setting:
                continue
            at.memory = memory
            if overrides(one, "state") and not at.two_stages and at.levels.own_state is not None:
                raise ValueError(
                    f"scheduler must step from the state it is handed for {type(one).__name__}, got "
                    f"{type(self.scheduler).__name__}. Use DDIM, Euler or DPMSolverMultistep."
                )
            one.check(at)

    def _check_step(self, at: At, x: Tensor, bound: inspect.BoundArguments) -> None:
        """Refuses a layout that is not known, and a table of another eta where the scheduler is first told it."""
        size = len(at.question)
        if self.directed is not None and len(x) not in (size, rows := len(at.question.call.sample)):  # type: ignore[attr-defined]
            raise ValueError(
                f"conditional rows must be as many as the {len(x)} states, got {size} in a call of {rows} of "
                f"{type(self.pipe).__name__}. Its layout needs a row in nag/seams/layouts.py."
            )
        if self.clock.done == 0 and "eta" in bound.arguments and "eta" not in self.sampler:
            for one in self.corrections:
                table: Any = getattr(one, "table", None)
                if hasattr(table, "eta") and table.eta != bound.arguments["eta"]:
                    table.check(self.scheduler, eta=float(bound.arguments["eta"]))


def _found(one: Correction, pipe: Any) -> Correction:
    """A correction; a calibration "auto" and weights in a folder beside the pipeline's checkpoint by their paths."""
    if isinstance(one, Merged) and isinstance(one.network, str):
        beside = Path(str(getattr(pipe, "name_or_path", "")), one.network)
        return replace(one, network=str(beside)) if beside.is_dir() else one
    if not (isinstance(one, Calibrated) and one.table == "auto"):
        return one
    fix = "Measure one with `nag calibrate`"
    return replace(one, table=beside_checkpoint(pipe, "noise_calibration", "auto", CALIBRATION_FILE, fix))


def beside_checkpoint(pipe: Any, argument: str, word: str, file: str, fix: str) -> Path:
    """The file that an argument's word means: found when the pipeline was loaded, or beside its checkpoint since."""
    known: Path | None = getattr(pipe, f"{argument}_path", None)
    folder = getattr(pipe, "name_or_path", "")
    beside = Path(str(folder), file)
    if known is None and not beside.is_file():
        raise ValueError(
            f"{argument} must lie beside the checkpoint to be found by {word!r}, got no {file} in {folder!r}. {fix}, or give "
            "its path."
        )
    return known or beside


def _reached(output: Any, x: Tensor) -> Any:
    """What `scheduler.step` returned, with another state."""
    if isinstance(output, tuple):
        return (x, *output[1:])
    changed = copy(output)
    changed.prev_sample = x
    return changed
