"""What `nag diagnose` finds: the null branch by hand, tiny pipelines of every kind, broken folders, and the words of a verdict."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from nag.load import NAGPipeline
from nag.network.null import record_dropout
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.measured import Measured
from nag.pipelines import NoiseUnconditionalPipeline
from nag.quality.diagnose import broken_parts, diagnose
from nag.quality.null_branch import NullBranch, probe_null_branch
from nag.quality.verdict import BOUND, LEAST, Budget, judge, minutes_needed
from nag.seams.attach import attach
from nag.seams.run import first_question
from nag.shift.data import DataOptions
from nag.shift.measure import NoiseShift
from tests.models import plain, tiny_unet
from tests.seams.zoo_pixels import unconditional_ldm
from tests.seams.zoo_transformers import dit
from tests.seams.zoo_unets import stable_diffusion

# The null branch


def of_black_images(hidden: float):
    """A network whose errors are known: of x = sigma eps it says eps / 2, or `hidden` eps without its level."""
    unet, scheduler = tiny_unet(), DDIMScheduler(clip_sample=False)

    def forward(sample, timestep, class_labels=None, return_dict=True):
        timestep = torch.as_tensor(timestep).float().expand(len(sample))
        embedding = unet.time_embedding(unet.time_proj(timestep))
        told = embedding.abs().sum(1) > 0
        sigma = (1 - scheduler.alphas_cumprod[timestep.long()]).sqrt()
        eps = sample / sigma[:, None, None, None]
        share = torch.where(told, 0.5, hidden)[:, None, None, None]
        return type("Output", (), {"sample": share * eps})()

    unet.forward = forward
    return plain(unet, scheduler)


@pytest.mark.parametrize(("hidden", "trained"), [(0.5, True), (0.49, True), (0.2, False), (0.0, False)])
def test_the_share_that_is_lost_by_hand(hidden, trained):
    """|1/2 - 1|^2 of |1|^2 is lost when told, (1 - h)^2 when not: of 3/4 explained, (1 - h)^2 - 1/4 is lost."""
    pipe = of_black_images(hidden)
    at = first_question(pipe, lambda: pipe(batch_size=4, num_inference_steps=10))
    found = probe_null_branch(at, torch.zeros(4, 1, 8, 8))
    close = {"rel": 0.02, "abs": 0.002}  # timesteps are rounded here, and not there
    assert found.told.value == pytest.approx(0.25, **close)
    assert found.null.value == pytest.approx((1 - hidden) ** 2, **close)
    assert found.lost.value == pytest.approx(((1 - hidden) ** 2 - 0.25) / 0.75, **close)
    assert found.denoises
    assert found.trained is trained


def test_too_few_states_and_useless_networks_do_not_tell():
    some = Measured(value=0.2, standard_error=0.01)
    found = NullBranch(
        told=some, null=some, lost=Measured(value=0.05, standard_error=0.02), levels=(0.0,), seconds=1
    )
    assert found.trained is None
    assert replace(found, lost=some).trained is False
    nothing = replace(found, lost=some, told=Measured(value=1.0, standard_error=0.1))
    assert (nothing.denoises, nothing.trained) == (False, None)


# Checkpoints


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataOptions:
    """Colour images of 16x16 with captions and classes."""
    folder, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    pictures = [Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(12)]
    features = Features({"image": ImageFeature(), "text": Value("string"), "label": Value("int64")})
    rows = {"image": pictures, "text": ["a cat", "the sea"] * 6, "label": [0, 1, 2] * 4}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "heldout.parquet")
    return DataOptions(data=str(folder))


def found_of(pipe, data, folder):
    pipe.save_pretrained(folder)
    return {one.name: one for one in diagnose(str(folder), data).findings}


def pixels(scheduler, **config):
    return DDPMPipeline(tiny_unet(sample_size=16, **config), scheduler)


TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
KINDS = {
    "DDPM": (lambda: pixels(DDPMScheduler()), {"states": "pixels 1x16x16", "process": "DiscreteVP, .*eps"}),
    "LDM": (
        unconditional_ldm,
        {"pipeline": "LDMPipeline", "states": "latents 3x8x8 of images 3x16x16, by its VQModel"},
    ),
    "Stable Diffusion": (
        stable_diffusion,
        {"states": "latents 4x8x8 .* by its AutoencoderKL", "images": "12 images .* with captions"},
    ),
    "DiT": (dit, {"network": "told its level by transformer_blocks", "images": "with classes of 1000"}),
    "flow": (lambda: pixels(FlowMatchEulerDiscreteScheduler()), {"process": "Flow, .* predicts velocity"}),
    "x_0": (
        lambda: pixels(DDIMScheduler(prediction_type="sample", **TRAILING)),
        {"process": "predicts x_0", "level dropout": "predicts x_0 .* 'gradient'"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint(kind, data, tmp_path):
    import re

    make, wanted = KINDS[kind]
    found = found_of(make(), data, tmp_path / "model")
    names = [
        "pipeline",
        "network",
        "images",
        "states",
        "scheduler",
        "process",
        "prediction",
        "regressor",
        "calibration",
        "device",
    ]
    assert set(names) <= set(found)
    for name in ("pipeline", "network", "images", "states"):
        assert found[name].state == "ok", found[name]
    for name, text in wanted.items():
        assert re.search(text, found[name].text), found[name]
    assert found["prediction"].state == "wrong"  # it was never trained
    assert found["regressor"].state == "optional"
    model = tmp_path / "model"
    if kind in ("DDPM", "flow", "x_0"):
        line = f"nag finetune regressor {model} --data {data.data} --output_dir {model / 'regressor'}"
        assert found["regressor"].command == line


def test_what_lies_beside_is_found_and_must_fit(data, tmp_path):
    pipe = pixels(DDIMScheduler(**TRAILING))
    record_dropout(pipe.unet, 0.2)
    pipe.save_pretrained(tmp_path)
    NoiseLevelRegressor.from_unet(pipe.unet, pipe.scheduler, hidden_size=8).save_pretrained(
        tmp_path / "regressor"
    )
    (tmp_path / "noise_calibration.json").write_text(
        '{"format": "nag noise calibration", "version": 2, "tables": []}'
    )
    found = {one.name: one for one in diagnose(str(tmp_path), data).findings}
    assert found["regressor"].text == "frozen, beside the model, for this network"
    assert found["calibration"].state == "ok"
    assert "0.2 is recorded" in found["level dropout"].text
    tiny_unet(seed=1, sample_size=16).save_pretrained(tmp_path / "unet")
    found = {one.name: one for one in diagnose(str(tmp_path), data).findings}
    assert found["regressor"].state == "wrong"
    assert "unet must be the one that the head was trained on" in found["regressor"].text


def test_consequences_are_noted(data, tmp_path):
    fourier = found_of(pixels(DDPMScheduler(), time_embedding_type="fourier"), data, tmp_path / "fourier")
    assert fourier["network"].state == "note"
    assert "divides its output by the noise level" in fourier["network"].text
    unipc = found_of(pixels(UniPCMultistepScheduler()), data, tmp_path / "unipc")
    assert "no calibration" in unipc["scheduler"].text
    blind = NoiseUnconditionalPipeline(tiny_unet(sample_size=16), DDIMScheduler())
    assert [one.state for one in found_of(blind, data, tmp_path / "blind").values()] == ["note"]
    four = found_of(pixels(DDPMScheduler(), in_channels=4, out_channels=4), data, tmp_path / "four")
    assert four["images"].state == "wrong"


def test_a_network_that_was_never_trained_without_its_level_is_noticed(tmp_path, monkeypatch):
    """It explains 3/4 of the noise of black images, and nothing without its level; a null adapter would mend that."""
    Image.fromarray(np.full((8, 8), 127, dtype=np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((8, 8), 128, dtype=np.uint8)).save(tmp_path / "1.png")
    pipe = attach(of_black_images(0.0))
    monkeypatch.setattr(NAGPipeline, "from_pretrained", lambda *args, **kwargs: pipe)
    data = DataOptions(data=str(tmp_path))
    found = {one.name: one for one in diagnose(str(tmp_path), data).findings}
    assert found["prediction"].state == "ok"
    assert found["level dropout"].state == "optional"
    place = tmp_path / "null_adapter"
    assert found["level dropout"].command == (
        f"nag finetune denoiser {tmp_path} --data {tmp_path} --null_adapter_rank 8 --output_dir {place}"
    )
    record_dropout(pipe.unet, 0.1)
    assert (
        "0.1 is recorded"
        in {one.name: one for one in diagnose(str(tmp_path), data).findings}["level dropout"].text
    )


# Broken folders


def whole(folder):
    DDIMPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(folder)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


BREAKS = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json", "it holds scheduler, unet"),
    "half an index": (
        lambda f: cut_text(f / "model_index.json"),
        "model_index.json",
        "it is no pipeline's index",
    ),
    "no network": (lambda f: shutil.rmtree(f / "unet"), "unet", "folder unet/ is not there"),
    "no weights": (lambda f: weights(f).unlink(), "unet", "no weights in unet/"),
    "cut weights": (lambda f: cut(weights(f)), "unet", "is cut off or no safetensors file"),
    "pickled": (lambda f: weights(f).rename(f / "unet" / "w.bin"), "unet", "pickle weights (w.bin)"),
    "no scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
        "scheduler",
        "no scheduler_config.json",
    ),
    "another library": (lambda f: renamed(f), "unet", "has no UNet9000: update diffusers"),
}


def weights(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def cut_text(path):
    path.write_text(path.read_text()[:20])


def renamed(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet9000"]}))


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_folder_is_told_what_is_broken(kind, tmp_path):
    act, name, text = BREAKS[kind]
    folder = whole(tmp_path / "model")
    assert broken_parts(folder) == []
    act(folder)
    (found,) = broken_parts(folder)
    assert (found.name, found.state) == (name, "wrong")
    assert text in found.text
    assert "save" in found.text or "copy" in found.text


# The verdict


def shift(mean, error, size=None, spread=None, **changed) -> NoiseShift:
    """A measurement without steps."""
    size, spread = abs(mean) if size is None else size, error if spread is None else spread
    return NoiseShift(
        **dict.fromkeys(("curve_log_snr", "curve_mean", "curve_standard_error", "steps"), ()),
        **{"interval": (-2.5, None), "num_steps": 10, "num_measured": 10, "num_bounded": 0, "mean_is": None}
        | {"mean_shift": mean, "mean_shift_standard_error": error, "settings": {}}
        | {"mean_abs_shift": size, "mean_abs_shift_standard_error": spread, "num_samples": 9, "num_images": 9}
        | changed,
    )


@pytest.mark.parametrize(
    ("measured", "kind", "text"),
    [
        (shift(0.12, 0.02), "shift", "runs 0.120 ± 0.020 noisier than it believes"),
        (shift(-0.12, 0.02), "shift", "runs 0.120 ± 0.020 cleaner than it believes"),
        (
            shift(0.12, 0.02, num_measured=3, num_bounded=1),
            "shift",
            r"believes, in log\(sigma/alpha\) over the 4 of 10 steps that could be measured;",
        ),
        (shift(0.12, 0.02), "shift", r"believes, in log\(sigma/alpha\);"),
        (shift(2.0, 0.02, mean_is="at least"), "shift", "runs at least 2.000 ± 0.020 noisier"),
        (shift(2.0, 0.0, mean_is="at least"), "shift", "runs at least 2.000 noisier"),  # bounds alone
        (
            shift(0.0, 0.02, 0.3, 0.02),
            "shift",
            "is off by 0.300 ± 0.020 .* noisier at some and cleaner at others",
        ),
        (shift(0.003, 0.005), "nothing", f"nothing to correct here: .* within {BOUND}"),
        (shift(0.015, 0.001), "nothing", "nothing to correct here"),
        (shift(0.003, 0.01), "unclear", "not clear: .* 9 samples and 9 images"),
        (shift(0.003, 0.005, num_measured=3), "unclear", "not clear"),
        (shift(0.001, 0.001, 0.03, 0.03), "unclear", "not clear"),
    ],
)
def test_one_sentence(measured, kind, text):
    import re

    found, sentence = judge(measured, 20)
    assert found == kind
    assert re.search(text, sentence)


def test_nothing_is_said_only_within_the_bound():
    """On both sides of |mean| + 2 s = 0.02."""
    assert judge(shift(0.0099, 0.005, size=0.0, spread=0.001), 20)[0] == "nothing"
    assert judge(shift(0.0101, 0.005, size=0.0, spread=0.001), 20)[0] != "nothing"


def test_time_is_planned():
    budget = Budget(minutes=10)
    each = 5 * 20 + 4 * (40 + 20) / 3  # passes for one sample and one image
    assert budget.samples(1e-3, 20) == 1024
    assert budget.samples(0.01, 20) == pytest.approx(0.8 * 600 / (0.01 * each), rel=0.02)
    need = minutes_needed(0.1, 20)
    assert Budget(minutes=1.01 * need).samples(0.1, 20) == pytest.approx(LEAST, abs=1)
