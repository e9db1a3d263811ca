"""What works with a checkpoint: one finding a line, each with the command that mends what is missing.

Nothing is trained or sampled here: the checkpoint is opened, its pipeline is called once up to its first question, and its
network is asked about a few forward states of the images (`nag.quality.null_branch`).
"""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nag.corrections.base import At
from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.corrections.calibration import NoiseCalibration, read_tables
from nag.corrections.noise_guidance import require_regressor
from nag.corrections.tuned import FILE_NAME as TUNED_FILE
from nag.corrections.tuned import read_entries
from nag.files import REGRESSOR_FOLDER, fetch_beside, read_json
from nag.load import NAGPipeline
from nag.network.direction import DIRECTION_FOLDER, DirectionHead
from nag.network.null import recorded_dropout
from nag.network.null_adapter import NULL_ADAPTER_FOLDER
from nag.network.regressor import NoiseLevelRegressor
from nag.network.table import architecture_of, unwrap
from nag.noise.relevel import require_calibratable
from nag.quality.bench import held_out_images, scheduler_line
from nag.quality.null_branch import NullBranch, probe_null_branch
from nag.seams.run import autoencoder_of, denoisers, first_question
from nag.shift.calls import batch_of, begun, classes_of, encoded, image_size, silent, sizes, takes
from nag.shift.data import DataOptions
from nag.shift.images import ImageTable

__all__ = ["Diagnosis", "Finding", "broken_parts", "diagnose"]

STEPS = 20
STATES = ((5e7, 8), (5e8, 4), (float("inf"), 2))
"""Images that a network of at most so many parameters is asked about."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a diagnosis."""

    name: str
    state: str  # "ok", "optional", "note" or "wrong"
    text: str
    command: str = ""  # what mends it


@dataclass(kw_only=True, eq=False)
class Diagnosis:
    """What was found, in the order in which it matters, and the pipeline that it was found of."""

    model: str
    findings: list[Finding] = field(default_factory=list)
    pipe: Any = None
    images: ImageTable | None = None
    seconds: float | None = None  # of one sample in one pass of the network

    def state(self, name: str) -> str | None:
        """The state of a finding."""
        return next((one.state for one in self.findings if one.name == name), None)

    def table(self, width: int = 120) -> str:
        """Plain text, for a terminal."""
        name = max((len(one.name) for one in self.findings), default=0) + 2
        indent, lines = " " * (name + 11), [f"{self.model}"]
        for one in self.findings:
            head = f"  {one.name:<{name}}{one.state:<9}"
            lines += textwrap.wrap(
                one.text,
                width,
                initial_indent=head,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            ) or [head]
            if one.command:
                lines.append(f"{indent}{one.command}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"model": self.model, "findings": [asdict(one) for one in self.findings]}


def diagnose(
    model: str,
    data: DataOptions,
    *,
    regressor: str | None = None,
    device: str | None = None,
    num_images: int = 100,
) -> Diagnosis:
    """Looks at a checkpoint and at the images that it is to be judged with.

    Raises:
        ValueError, OSError: if the pipeline cannot be opened; `broken_parts` says what of a folder is broken.
    """
    pipe = NAGPipeline.from_pretrained(model, regressor=False)
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.float().eval()
    found = Diagnosis(model=model, pipe=pipe)
    looking = _Looking(found, data, regressor, num_images)
    for name, look in looking.places():
        try:
            one = look()
        except Exception as error:  # a stranger's checkpoint: what fails is the finding
            words = " ".join(str(error).split()) or type(error).__name__
            one = Finding(name=name, state="wrong", text=words)
        if one is not None:
            found.findings.append(one)
    return found


class _Looking:
    """The places that are looked at, in turn; each gives a finding, or None where there is nothing to say."""

    def __init__(self, found: Diagnosis, data: DataOptions, regressor: str | None, num_images: int) -> None:
        self.found, self.data, self.named, self.num_images = found, data, regressor, num_images
        self.model, self.pipe = found.model, found.pipe
        self.at: At | None = None
        self.probe: NullBranch | None = None
        self.hideable = True

    def places(self) -> Iterator[tuple[str, Callable[[], Finding | None]]]:
        yield "pipeline", self.pipeline
        if not hasattr(self.pipe, "regressor"):
            return
        yield "network", self.network
        yield "images", self.images
        yield "states", self.states
        yield "scheduler", self.scheduler
        if self.at is not None and not isinstance(self.at.found, ValueError):
            yield "process", self.process
            yield "prediction", self.prediction
            yield "level dropout", self.level_dropout
        yield "regressor", self.regressor
        yield "calibration", self.calibration
        yield "tuned settings", self.tuned
        yield "direction head", self.direction
        yield "student", self.student
        yield "feature network", self.features
        yield "device", self.device

    def _command(self, words: str, place: str = "", **options: str) -> str:
        """A command about the model and the images; what it makes goes to a folder beside the model."""
        model, local = shlex.quote(self.model), os.path.isdir(self.model)
        parts = ["nag", words, model, "--data", shlex.quote(self.data.data)]
        parts += [f"--{name} {value}" for name, value in options.items()]
        if place:
            parts.append(f"--output_dir {shlex.quote(str(Path(self.model, place)) if local else place)}")
        return " ".join(parts)

    def _optional(self, name: str, text: str, words: str, place: str = "", **options: str) -> Finding:
        return Finding(name=name, state="optional", text=text, command=self._command(words, place, **options))

    def pipeline(self) -> Finding:
        name = str(self.pipe.config.get("_class_name") or "")
        own = getattr(type(self.pipe), "plain_class", type(self.pipe)).__name__
        with suppress(OSError, ValueError):
            name = read_json(Path(self.model, "model_index.json"))["_class_name"]
        text = own if name in ("", own) else f"{name}, opened as {own}"
        if not hasattr(self.pipe, "regressor"):
            return Finding(
                name="pipeline",
                state="note",
                text=f"{text}: it is never told its noise level, so there is no shift to correct and no noise guidance",
            )
        return Finding(name="pipeline", state="ok", text=text)

    def network(self) -> Finding:
        networks = denoisers(self.pipe)
        if not networks:
            parts = ", ".join(self.pipe.components)
            return Finding(name="network", state="wrong", text=f"no denoiser among its components {parts}")
        network = unwrap(next(iter(networks.values())))
        count = sum(p.numel() for p in network.parameters())
        text = f"{type(network).__name__}, {_amount(count)} parameters"
        if len(networks) > 1:
            text += f"; the first of {len(networks)}: {', '.join(networks)}"
        try:
            row = architecture_of(network)
        except ValueError as error:
            self.hideable = False
            return Finding(
                name="network",
                state="note",
                text=f"{text}; no noise guidance, no frozen regressor, for {str(error).split(', which ')[-1]}",
            )
        self.hideable = row.null == "zero"
        layer = (
            "" if row.features else "; its features cannot be read, so a regressor needs a network of its own"
        )
        return Finding(
            name="network", state="ok", text=f"{text}, told its level by {_modules(row.level_modules)}{layer}"
        )

    def images(self) -> Finding:
        classes, table = classes_of(self.pipe), None
        with redirect_stdout(None):  # what was resized is said here
            if classes is not None:
                with suppress(ValueError):
                    table = held_out_images(self.pipe, self.data, self.num_images, with_labels=True)
            if table is None:
                table = held_out_images(self.pipe, self.data, self.num_images, with_labels=False)
        self.found.images = table
        text = f"{table.note}, from {self.data.data}"
        if classes is not None:
            text += (
                f", with classes of {classes}"
                if table.classes is not None
                else f", without the model's {classes} classes"
            )
        if takes(self.pipe, "prompt"):
            text += (
                ", with captions"
                if table.captions
                else ", without captions: pass prompts with --prompts FILE"
            )
        lacks = (classes is not None and table.classes is None) or (
            takes(self.pipe, "prompt") and not table.captions
        )
        return Finding(name="images", state="note" if lacks else "ok", text=text)

    def states(self) -> Finding:
        """Calls the pipeline up to its first question."""
        if self.found.images is None:
            return Finding(name="states", state="wrong", text="not looked at without images")
        table = self.found.images
        networks = next(iter(denoisers(self.pipe).values()))
        size = sum(p.numel() for p in networks.parameters())
        count = min(next(count for most, count in STATES if size <= most), len(table))
        given = {"num_inference_steps": STEPS} | sizes(self.pipe, self.data.resolution)
        if takes(self.pipe, "prompt"):
            given["prompt"] = (table.captions or [""] * count)[:count]
        classes = classes_of(self.pipe)
        if classes is not None:
            known = table.classes
            given["class_labels"] = known[:count] if known is not None else torch.full((count,), classes)
        call = batch_of(self.pipe, given, 0, count, num_samples=count, seed=0)
        with silent(self.pipe):
            self.at = at = first_question(self.pipe, lambda: self.pipe(**call))
        channels, pixels = image_size(self.pipe)
        shape = "x".join(map(str, at.u.shape[1:]))
        vae = autoencoder_of(self.pipe)
        if vae is not None:
            text = f"latents {shape} of images {channels}x{pixels}x{pixels}, by its {type(vae).__name__}"
            return Finding(name="states", state="ok", text=text)
        if channels not in (1, 3):
            text = f"{shape} without an autoencoder: no image has {channels} channels. Are these latents whose VAE is left out?"
            return Finding(name="states", state="wrong", text=text)
        return Finding(name="states", state="ok", text=f"pixels {shape}")

    def scheduler(self) -> Finding:
        scheduler = self.pipe.scheduler
        if self.at is not None and isinstance(self.at.found, ValueError):
            return Finding(name="scheduler", state="wrong", text=str(self.at.found))
        line = scheduler_line(scheduler).removesuffix(": ")
        if self.at is None:
            return Finding(name="scheduler", state="note", text=line)
        levels = self.at.levels
        inside = levels.log_snr >= -2.5
        label = -0.5 * (levels.log_snr_of(levels.timesteps) - levels.log_snr)[inside]
        arrival = -0.5 * (levels.arrival_log_snr - levels.log_snr)[inside]
        parts = []
        for what, values in (
            ("tells the network levels that are", label),
            ("arrives at levels that are", arrival),
        ):
            mean = float(values.mean()) if len(values) else 0.0
            if abs(mean) >= 0.005:
                parts.append(f"by itself it {what} {mean:+.3f} off in log(sigma/alpha) at {STEPS} steps")
        try:
            require_calibratable(scheduler)
        except ValueError as error:
            parts.append(f"no calibration: it is one, {str(error).split(', ', 2)[-1].split('. ')[0]}")
        return Finding(name="scheduler", state="note" if parts else "ok", text="; ".join([line, *parts]))

    def process(self) -> Finding:
        assert self.at is not None
        levels = self.at.levels
        process = levels.training
        ends = [float(process.log_snr(torch.tensor(t).double())) for t in (process.t_max, process.t_min)]
        text = f"{type(process).__name__}, log-SNR {ends[0]:.1f} to {ends[1]:.1f}; the network predicts {levels.prediction}"
        return Finding(name="process", state="ok", text=text)

    def prediction(self) -> Finding:
        assert self.at is not None
        assert self.found.images is not None
        count = len(self.at.question)
        images = encoded(self.pipe, self.found.images.tensor(range(count)), self.at.u)
        self.probe = probe = probe_null_branch(self.at, images, null=self.hideable)
        self.found.seconds = probe.seconds
        share, error = 100 * (1 - probe.told.value), 100 * probe.told.standard_error
        digits = int(error < 0.5)
        text = (
            f"it explains {share:.{digits}f} ± {error:.{digits}f} % of its target on {count} of the images, over log-SNR "
            f"{probe.levels[0]:g} to {probe.levels[-1]:g}"
        )
        if probe.denoises:
            return Finding(name="prediction", state="ok", text=text)
        return Finding(
            name="prediction",
            state="wrong",
            text=f"{text}: as good as nothing. Is it trained, on such images, in their range of [-1, 1], and is this its "
            "scheduler?",
        )

    def level_dropout(self) -> Finding | None:
        assert self.at is not None
        name, probe = "level dropout", self.probe
        recorded = recorded_dropout(self.at.network)
        said = "nothing is recorded" if recorded is None else f"{recorded:g} is recorded"
        if "null_adapter" in vars(unwrap(self.at.network)):
            said = "a null adapter acts where its level is hidden"
        if not self.hideable:
            return None
        if self.at.levels.prediction == "x_0":
            text = (
                f"{said}; for a network that predicts x_0 the classifier-free form of noise guidance says nothing and is "
                "refused: take the mode 'gradient' with a regressor"
            )
            return Finding(name=name, state="note", text=text)
        if probe is None or probe.lost is None:
            return Finding(name=name, state="note", text=said)
        lost = f"{100 * probe.lost.value:.1f} ± {100 * probe.lost.standard_error:.1f} %"
        text = f"{said}; without its level it loses {lost} of what it explains"
        if probe.trained and recorded:
            return Finding(name=name, state="ok", text=text)
        if probe.trained:
            text += ": as after level dropout, or as a network that hardly uses its level"
            return Finding(name=name, state="note", text=text)
        if not probe.denoises:
            return Finding(name=name, state="note", text=f"{said}; it explains too little to tell")
        if probe.trained is None:
            return Finding(name=name, state="ok" if recorded else "note", text=f"{text}: not enough to tell")
        must = f"{text}: it was not trained so, and noise guidance would compare with an output that nobody trained"
        return self._optional(name, must, "finetune denoiser", NULL_ADAPTER_FOLDER, null_adapter_rank="8")

    def regressor(self) -> Finding:
        named, where = self.named, "given"
        options: dict[str, Any] = {}
        if named is None:
            if fetch_beside(self.model, f"{REGRESSOR_FOLDER}/config.json") is None:
                text = "none beside the model; shift, calibration and noise guidance by gradient need one"
                return self._optional("regressor", text, "finetune regressor", REGRESSOR_FOLDER)
            named, where, options = self.model, "beside the model", {"subfolder": REGRESSOR_FOLDER}
        found = NoiseLevelRegressor.from_pretrained(named, **options)
        self.pipe.regressor = found
        if self.at is not None and not isinstance(self.at.found, ValueError):
            require_regressor(found, self.at.levels, "the shift")
        return Finding(name="regressor", state="ok", text=f"{found.config.kind}, {where}, for this network")

    def calibration(self) -> Finding:
        path = fetch_beside(self.model, CALIBRATION_FILE)
        if path is None:
            need = "" if self.found.state("regressor") == "ok" else "; it needs a regressor"
            text = f"no {CALIBRATION_FILE} beside the model{need}"
            return self._optional("calibration", text, "calibrate", steps=str(STEPS))
        tables = read_tables(path)
        told = [f"{one.scheduler} with {one.num_inference_steps} steps{self._fits(one)}" for one in tables]
        return Finding(name="calibration", state="ok", text=", ".join(told) or "an empty file")

    def _fits(self, table: NoiseCalibration) -> str:
        given = {"num_inference_steps": table.num_inference_steps} | sizes(self.pipe, self.data.resolution)
        given |= {"prompt": [""], "class_labels": [0]}  # what the pipeline does not take is left out
        try:
            table.check(begun(self.pipe, self.pipe.scheduler, given).scheduler)
        except ValueError:
            return " (not as this model's scheduler is set)"
        return ""

    def tuned(self) -> Finding:
        path = fetch_beside(self.model, TUNED_FILE)
        if path is None:
            text = f"no {TUNED_FILE} beside the model: which weight of noise guidance helps, if any, is not known"
            return self._optional("tuned settings", text, "tune", steps=str(STEPS))
        told = [f"{one.sampler}: {'tuned' if one.helps else 'leave it off'}" for one in read_entries(path)]
        return Finding(name="tuned settings", state="ok", text="; ".join(told) or "an empty file")

    def direction(self) -> Finding:
        path = fetch_beside(self.model, f"{DIRECTION_FOLDER}/config.json")
        if path is None:
            text = "none beside the model; it gives guidance at the cost of the plain pass"
            return self._optional("direction head", text, "finetune direction", DIRECTION_FOLDER)
        head = DirectionHead.load(path.parent)
        head.require(next(iter(denoisers(self.pipe).values())))
        text = f'beside the model, for this network, weak model {head.config.weak}: noise_guidance="fast"'
        return Finding(name="direction head", state="ok", text=text)

    def student(self) -> Finding:
        names = ("model_index.json", "adapter.json")
        if all(fetch_beside(self.model, f"student/{name}") is None for name in names):
            text = "none beside the model; guidance by a weak model, distilled, in one pass"
            return self._optional("student", text, "finetune distill", "student", weak="train")
        return Finding(
            name="student", state="ok", text="student/ beside the model: merged:network=student,strength=0.5"
        )

    def features(self) -> Finding:
        if fetch_beside(self.model, "classifier/config.json") is not None:
            return Finding(name="feature network", state="ok", text="classifier/ beside the model")
        text = "none beside the model; compare and tune need one"
        command = self._command("features classifier")
        return Finding(name="feature network", state="optional", text=text, command=command)

    def device(self) -> Finding:
        modules = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        weights = sum(p.numel() * p.element_size() for part in modules for p in part.parameters())
        place = self.pipe.device
        where = (
            f"{torch.cuda.get_device_name(place)}, {torch.cuda.mem_get_info(place)[0] / 2**30:.0f} GiB free"
            if place.type == "cuda"
            else f"{place.type}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        )
        text = f"{where}; weights {weights / 2**20:.0f} MiB in float32"
        if self.found.seconds is not None:
            text += f"; one pass {1000 * self.found.seconds:.3g} ms a sample"
        return Finding(name="device", state="ok", text=text)


def _modules(pattern: str) -> str:
    """A regular expression of module names, readable."""
    return pattern.replace("\\.", ".").replace("\\d+", "*")


def _amount(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)


def broken_parts(folder: str | os.PathLike[str]) -> list[Finding]:
    """What of a pipeline's folder is broken, and how to mend it; nothing for a whole one."""
    root, again = Path(folder), "save it again with pipe.save_pretrained(FOLDER)"
    index = root / "model_index.json"
    if not index.is_file():
        inside = sorted(one.name for one in root.iterdir())[:8]
        text = f"no model_index.json in it; it holds {', '.join(inside) or 'nothing'}. A pipeline's folder has one: {again}"
        return [Finding(name="model_index.json", state="wrong", text=text)]
    try:
        parts = dict(read_json(index).items())
    except (ValueError, AttributeError) as error:
        text = f"it is no pipeline's index ({str(error).split(': ', 1)[-1].split(' Write')[0]}): {again}"
        return [Finding(name="model_index.json", state="wrong", text=text)]
    return [one for name, part in parts.items() for one in _broken_part(root, name, part, again)]


def _broken_part(root: Path, name: str, part: Any, again: str) -> Iterator[Finding]:
    import diffusers

    if name.startswith("_") or not (isinstance(part, list) and len(part) == 2 and part[1] is not None):
        return
    place = root / name if (root / name).is_dir() else root
    library, cls = part
    if library == "diffusers" and not hasattr(diffusers, cls):
        text = f"diffusers {diffusers.__version__} has no {cls}: update diffusers, or {again} by the version that wrote it"
        yield Finding(name=name, state="wrong", text=text)
        return
    kind = getattr(diffusers, cls, object)
    model = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    wanted = "config.json" if model else "scheduler_config.json" if name.endswith("scheduler") else None
    if place == root and not (wanted and (root / wanted).is_file()):
        yield Finding(
            name=name,
            state="wrong",
            text=f"its folder {name}/ is not there: copy it from the model, or {again}",
        )
        return
    if wanted is None:
        return
    if not (place / wanted).is_file():
        yield Finding(
            name=name, state="wrong", text=f"no {wanted} in {name}/: copy it from the model, or {again}"
        )
    else:
        try:
            read_json(place / wanted)
        except ValueError:
            yield Finding(
                name=name,
                state="wrong",
                text=f"{name}/{wanted} is no JSON: copy it from the model, or {again}",
            )
    if model:
        yield from _broken_weights(place, name, again)


def _broken_weights(place: Path, name: str, again: str) -> Iterator[Finding]:
    from safetensors import SafetensorError, safe_open

    files = sorted(place.glob("*.safetensors"))
    if not files:
        others = [
            one.name for one in sorted(place.iterdir()) if one.suffix in (".bin", ".pt", ".pth", ".ckpt")
        ]
        got = f"pickle weights ({', '.join(others)}), which can run code" if others else "no weights"
        text = f"{got} in {name}/: {'open them with plain diffusers if you trust them, and ' if others else ''}{again}"
        yield Finding(name=name, state="wrong", text=text)
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            text = f"{file.name} is cut off or no safetensors file ({error}): copy it again"
            yield Finding(name=name, state="wrong", text=text)


def write_diagnosis(found: Diagnosis, folder: Path, **more: Any) -> Path:
    """Writes diagnosis.json."""
    from nag.files import written_file

    path = folder / "diagnosis.json"
    with written_file(path) as part:
        part.write_text(
            json.dumps(found.to_dict() | more, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return path
