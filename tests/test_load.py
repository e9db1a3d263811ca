"""Saving and loading: plain diffusers opens what is saved, whole or not at all, in a folder and on a (simulated) Hub."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)

from nag.blind import EquilibriumMatchingScheduler
from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.load import NAGPipeline
from nag.network.regressor import NoiseLevelRegressor
from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline
from nag.seams.attach import Attached
from tests.models import pipeline, plain, tiny_unet
from tests.seams.zoo_pixels import unconditional_ldm
from tests.seams.zoo_unets import stable_diffusion, text
from tests.simulated_hub import SimulatedHub

# diffusers' own, whenever a model's configuration is fetched by itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning"
)


def full(unet: UNet2DModel) -> NoiseLevelRegressor:
    return NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind="encoder")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


PLAIN = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
         "unet/diffusion_pytorch_model.safetensors"]  # fmt: skip
REGRESSOR = ["regressor/config.json", "regressor/diffusion_pytorch_model.safetensors"]


# Pipelines of diffusers


def test_stable_diffusion_comes_back_as_itself_with_the_keywords(tmp_path: Path) -> None:
    made = stable_diffusion()
    made.save_pretrained(tmp_path / "model")
    pipe = NAGPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipe, StableDiffusionPipeline)
    assert type(pipe).plain_class is StableDiffusionPipeline
    expected = made(**text()).images
    # Memory alignment of loaded weights changes the order of sums in some kernels.
    torch.testing.assert_close(pipe(**text()).images, expected, rtol=1e-3, atol=1e-3)
    guided = pipe(noise_guidance_scale=0.5, **text()).images
    assert float((guided - expected).abs().max()) > 1e-2

    pipe.regressor = NoiseLevelRegressor.from_unet(pipe.unet, pipe.scheduler)
    pipe.noise_calibration_path = tmp_path / "given.json"
    pipe.noise_calibration_path.write_text("{}")
    pipe.save_pretrained(tmp_path / "again")
    added = {*REGRESSOR, CALIBRATION_FILE}
    assert set(tree(tmp_path / "again")) == {*tree(tmp_path / "model"), *added}
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for opened in (
        DiffusionPipeline.from_pretrained(tmp_path / "again"),
        StableDiffusionPipeline.from_pretrained(tmp_path / "again"),
    ):
        assert type(opened) is StableDiffusionPipeline
        assert same_weights(opened.unet, pipe.unet)
    found = NAGPipeline.from_pretrained(tmp_path / "again")
    assert same_weights(found.regressor, pipe.regressor)
    assert found.regressor.network is found.unet
    assert found.noise_calibration_path == tmp_path / "again" / CALIBRATION_FILE


def test_from_pipe_leaves_the_given_pipeline_plain() -> None:
    for given in (stable_diffusion(), DDPMPipeline(tiny_unet().to(torch.bfloat16), DDPMScheduler())):
        cls, config, scheduler = type(given), dict(given.config), given.scheduler
        pipe = NAGPipeline.from_pipe(given)
        assert isinstance(pipe, Attached)
        assert type(pipe).plain_class is (UNet2DPipeline if cls is DDPMPipeline else cls)
        assert pipe.components.keys() == given.components.keys()
        assert all(pipe.components[name] is part for name, part in given.components.items())
        assert pipe.dtype == given.dtype
        pipe.regressor = NoiseLevelRegressor.from_unet(pipe.unet, pipe.scheduler)
        pipe.scheduler = EulerDiscreteScheduler()
        assert type(given) is cls
        assert dict(given.config) == config
        assert given.scheduler is scheduler
        assert not hasattr(given, "regressor")
        assert "noise_guidance_scale" not in inspect.signature(given.__call__).parameters


def test_from_pipe_keeps_or_replaces_what_is_attached(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    pipe = pipeline(unet, regressor=regressor)
    pipe.noise_calibration_path = Path("somewhere.json")
    again = NAGPipeline.from_pipe(pipe)
    assert again is not pipe
    assert again.regressor is regressor
    assert again.noise_calibration_path == pipe.noise_calibration_path
    assert NAGPipeline.from_pipe(pipe, regressor=None).regressor is None
    assert pipe.regressor is regressor
    given = DDIMPipeline(unet, DDIMScheduler())
    assert NAGPipeline.from_pipe(given, regressor=regressor).regressor is regressor
    for one in (pipe, given):
        scheduler = EulerDiscreteScheduler()
        assert NAGPipeline.from_pipe(one, scheduler=scheduler).scheduler is scheduler
        assert type(one.scheduler) is DDIMScheduler
        with pytest.raises(ValueError, match="kwargs.* dtype"):
            NAGPipeline.from_pipe(one, dtype=torch.float16)


def test_models_without_a_level_come_back_plain(unet: UNet2DModel) -> None:
    regressor = full(unet)
    for pipe in (
        NoiseUnconditionalPipeline(unet, DDIMScheduler()),
        EqMPipeline(unet, EquilibriumMatchingScheduler()),
    ):
        assert type(NAGPipeline.from_pipe(pipe)) is type(pipe)
        with pytest.raises(ValueError, match="regressor.* NoiseLevel"):
            NAGPipeline.from_pipe(pipe, regressor=regressor)


def test_a_path_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must hold a model_index.json, got the folder .* without one"):
        NAGPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="path.* got 'my model!!'.*no repository can have that name"):
        NAGPipeline.from_pretrained("my model!!")


def test_latent_diffusion_comes_back_as_itself(tmp_path: Path) -> None:
    unconditional_ldm().save_pretrained(tmp_path)
    pipe = NAGPipeline.from_pretrained(tmp_path)
    assert type(pipe).plain_class is LDMPipeline
    assert pipe(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("where", ["in the index", "beside it"])
def test_latents_are_not_taken_for_images(tmp_path: Path, where: str) -> None:
    """A pipeline for pixels with an autoencoder would return the latents of its samples."""
    made = unconditional_ldm()
    DDIMPipeline(made.unet, made.scheduler).save_pretrained(tmp_path)
    made.vqvae.save_pretrained(tmp_path / "vqvae")
    if where == "in the index":
        index = json.loads((tmp_path / "model_index.json").read_text())
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="path must .*decodes.*, a DDIMPipeline, .* with a vqvae"):
        NAGPipeline.from_pretrained(tmp_path)


# Folders


@pytest.mark.parametrize(
    ("scheduler", "cls"), [(DDIMScheduler(), DDIMPipeline), (EulerDiscreteScheduler(), DDPMPipeline)]
)
def test_plain_diffusers_opens_a_saved_folder(
    unet: UNet2DModel, tmp_path: Path, scheduler, cls: type
) -> None:
    pipe = pipeline(unet, scheduler, regressor=full(unet))
    pipe.save_pretrained(tmp_path / "model")
    plain(unet, scheduler).save_pretrained(tmp_path / "plain")
    assert tree(tmp_path / "plain") == PLAIN
    shutil.rmtree(tmp_path / "plain")
    assert tree(tmp_path / "model") == sorted(PLAIN + REGRESSOR)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    for opened in (
        DiffusionPipeline.from_pretrained(tmp_path / "model"),
        cls.from_pretrained(tmp_path / "model"),
    ):
        assert type(opened) is cls
        assert type(opened.scheduler) is type(scheduler)
        assert same_weights(opened.unet, unet)


def test_a_plain_folder_has_no_regressor(unet: UNet2DModel, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    pipe = NAGPipeline.from_pretrained(tmp_path / "model")
    assert type(pipe).plain_class is UNet2DPipeline
    assert type(pipe.scheduler) is DDIMScheduler
    assert same_weights(pipe.unet, unet)
    assert pipe.regressor is None


@pytest.mark.parametrize("kind", ["frozen", "encoder", "full"])
def test_regressor_saved_and_found_again(unet: UNet2DModel, tmp_path: Path, kind: str) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind=kind)
    pipeline(unet, DDIMScheduler(), regressor=regressor).save_pretrained(tmp_path / "model")
    pipe = NAGPipeline.from_pretrained(tmp_path / "model")
    assert same_weights(pipe.regressor, regressor)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(pipe.regressor.estimate(x).log_snr, regressor.estimate(x).log_snr)
    assert NAGPipeline.from_pretrained(tmp_path / "model", regressor=False).regressor is None
    given = full(unet)
    assert NAGPipeline.from_pretrained(tmp_path / "model", regressor=given).regressor is given
    given.save_pretrained(tmp_path / "elsewhere")
    other = NAGPipeline.from_pretrained(tmp_path / "model", regressor=tmp_path / "elsewhere").regressor
    assert same_weights(other, given)


def test_precision(unet: UNet2DModel, tmp_path: Path) -> None:
    """The UNet comes as asked, the regressor in single precision, in which gradients run."""
    pipeline(unet, DDIMScheduler(), regressor=full(unet)).save_pretrained(tmp_path / "model")
    pipe = NAGPipeline.from_pretrained(tmp_path / "model", dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16
    assert pipe.regressor.dtype == torch.float32
    assert pipe.to(torch.bfloat16).unet.dtype == torch.bfloat16
    assert pipe.regressor.dtype == torch.float32


def test_a_calibration_travels_with_the_checkpoint(unet: UNet2DModel, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CALIBRATION_FILE).write_text("{}")
    pipe = NAGPipeline.from_pretrained(tmp_path / "model")
    assert pipe.noise_calibration_path == tmp_path / "model" / CALIBRATION_FILE
    pipe.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / CALIBRATION_FILE).read_text() == "{}"
    pipe.save_pretrained(tmp_path / "model")
    assert NAGPipeline.from_pipe(pipe).noise_calibration_path == pipe.noise_calibration_path


def test_saving_again_replaces_what_is_there_and_keeps_other_files(unet: UNet2DModel, tmp_path: Path) -> None:
    pipeline(tiny_unet(seed=1), DDIMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    pipeline(unet, DDIMScheduler(), regressor=full(unet)).save_pretrained(tmp_path)
    assert tree(tmp_path) == sorted([*PLAIN, *REGRESSOR, "notes.txt"])
    assert same_weights(NAGPipeline.from_pretrained(tmp_path).unet, unet)


def test_a_stale_regressor_is_not_left_beside_another_unet(unet: UNet2DModel, tmp_path: Path) -> None:
    pipeline(unet, DDIMScheduler(), regressor=full(unet)).save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    with pytest.raises(ValueError, match="save_directory must not hold 'regressor' of another pipeline"):
        pipeline(tiny_unet(seed=1), DDIMScheduler()).save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before


def test_whole_or_not_at_all(unet: UNet2DModel, tmp_path: Path) -> None:
    """A calibration that cannot be read fails after the UNet and the regressor were written."""
    pipe = pipeline(unet, DDIMScheduler(), regressor=full(unet))
    pipe.noise_calibration_path = tmp_path / "gone.json"
    with pytest.raises(FileNotFoundError):
        pipe.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    pipeline(tiny_unet(seed=1), DDIMScheduler()).save_pretrained(tmp_path / "model")
    before = {name: (tmp_path / "model" / name).read_bytes() for name in tree(tmp_path / "model")}
    with pytest.raises(FileNotFoundError):
        pipe.save_pretrained(tmp_path / "model")
    assert {name: (tmp_path / "model" / name).read_bytes() for name in tree(tmp_path / "model")} == before


def test_a_flat_checkpoint_such_as_the_first_ddpm_ones(unet: UNet2DModel, tmp_path: Path) -> None:
    """Network and scheduler at the top of the folder."""
    DDPMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            shutil.move(file, tmp_path)
        (tmp_path / part).rmdir()
    assert same_weights(NAGPipeline.from_pretrained(tmp_path).unet, unet)


def test_refusals(unet: UNet2DModel, tmp_path: Path) -> None:
    pipe = pipeline(unet, DDIMScheduler())
    for one in (pipe, plain(unet)):
        with pytest.raises(ValueError, match="safe_serialization.* False"):
            one.save_pretrained(tmp_path / "model", safe_serialization=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="save_directory.* the file"):
        pipe.save_pretrained(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="use_safetensors.* False"):
        UNet2DPipeline.from_pretrained(tmp_path, use_safetensors=False)


def pickled(unet: UNet2DModel, folder: Path) -> Path:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet.state_dict(), folder / "unet/diffusion_pytorch_model.bin")
    return folder


PICKLE = (
    r"path must hold safetensors weights, got unet/diffusion_pytorch_model.bin in .* save_pretrained again"
)


def test_pickle_weights_are_refused(unet: UNet2DModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=PICKLE):
        NAGPipeline.from_pretrained(pickled(unet, tmp_path / "model"))


def test_an_incomplete_folder_fails_as_in_diffusers(unet: UNet2DModel, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.safetensors"):
        NAGPipeline.from_pretrained(tmp_path)


# The Hub


def test_pushed_pulled_and_opened_by_plain_diffusers(unet: UNet2DModel, hub: SimulatedHub) -> None:
    regressor = full(unet)
    pipe = pipeline(unet, DDIMScheduler(), regressor=regressor)
    pipe.push_to_hub("someone/model", token="hf_x")
    assert sorted(hub.files["someone/model"]) == sorted([*PLAIN, *REGRESSOR, "README.md"])
    index = json.loads(hub.files["someone/model"]["model_index.json"])
    assert index["_class_name"] == "DDIMPipeline"
    assert "regressor" not in index

    found = NAGPipeline.from_pretrained("someone/model")
    assert same_weights(found.unet, unet)
    assert same_weights(found.regressor, regressor)


def test_a_plain_user_does_not_download_the_regressor(
    unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path
) -> None:
    pipeline(unet, DDIMScheduler(), regressor=full(unet)).save_pretrained(tmp_path / "model")
    hub.upload("someone/model", tmp_path / "model")
    opened = DiffusionPipeline.from_pretrained("someone/model")
    assert type(opened) is DDIMPipeline
    assert same_weights(opened.unet, unet)
    assert not [name for name in hub.downloaded if name.startswith("regressor")]


def test_save_and_push_uploads_the_final_index(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    pipe = pipeline(unet, DDIMScheduler(), regressor=full(unet))
    pipe.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="someone/model", token="hf_x")
    assert hub.order == ["create", "commit"]
    local = {name: (tmp_path / "model" / name).read_bytes() for name in tree(tmp_path / "model")}
    assert hub.files["someone/model"] == local


def test_plain_pipelines_are_pushed_too(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    for k, pipe in enumerate((plain(unet), NoiseUnconditionalPipeline(unet, DDIMScheduler()))):
        pipe.push_to_hub(f"someone/pushed{k}", token="hf_x")
        pipe.save_pretrained(
            tmp_path / f"saved{k}", push_to_hub=True, repo_id=f"someone/saved{k}", token="hf_x"
        )
        pipe.save_pretrained(tmp_path / f"named{k}", push_to_hub=True, token="hf_x")
        assert f"someone/named{k}" in hub.files
        for name in ("pushed", "saved"):
            assert sorted(hub.files[f"someone/{name}{k}"]) == sorted([*PLAIN, "README.md"])
            assert same_weights(NAGPipeline.from_pretrained(f"someone/{name}{k}").unet, unet)


def test_beside_a_checkpoint_on_the_hub(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    hub.upload("someone/plain", tmp_path / "model")
    cache = tmp_path / "cache of mine"
    pipe = NAGPipeline.from_pretrained("someone/plain", cache_dir=cache)
    assert pipe.regressor is None
    assert pipe.noise_calibration_path is None
    assert not (tmp_path / "cache").exists()
    (tmp_path / "model" / CALIBRATION_FILE).write_text("{}")
    hub.upload("someone/calibrated", tmp_path / "model")
    assert NAGPipeline.from_pretrained("someone/calibrated").noise_calibration_path.read_text() == "{}"
    full(unet).save_pretrained(tmp_path / "regressor")
    hub.upload("someone/regressor", tmp_path / "regressor")
    assert NAGPipeline.from_pretrained("someone/plain", regressor="someone/regressor").regressor is not None


def test_offline_from_the_cache(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    pipeline(unet, DDIMScheduler(), regressor=full(unet)).save_pretrained(tmp_path / "model")
    hub.upload("someone/model", tmp_path / "model")
    NAGPipeline.from_pretrained("someone/model")
    shutil.rmtree(tmp_path / "model")
    hub.files.clear()
    pipe = NAGPipeline.from_pretrained("someone/model", local_files_only=True)
    assert same_weights(pipe.unet, unet)
    assert pipe.regressor is not None


def test_pickle_weights_on_the_hub_are_refused(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    hub.upload("someone/pickled", pickled(unet, tmp_path / "model"))
    with pytest.raises(ValueError, match=PICKLE):
        NAGPipeline.from_pretrained("someone/pickled")
    assert not [name for name in hub.downloaded if name.endswith(".bin")]


def test_a_repository_that_is_not_there(hub: SimulatedHub) -> None:
    with pytest.raises(ValueError, match="path.* got 'someone/nothing': .*no such folder, and no such repo"):
        NAGPipeline.from_pretrained("someone/nothing")


def test_a_repository_without_a_pipeline(unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path) -> None:
    full(unet).save_pretrained(tmp_path / "regressor")
    hub.upload("someone/regressor", tmp_path / "regressor")
    with pytest.raises(ValueError, match="path must hold a model_index.json, got the repository 'someone/re"):
        NAGPipeline.from_pretrained("someone/regressor")


def test_a_hub_that_cannot_be_reached_is_said_at_once(
    unet: UNet2DModel, hub: SimulatedHub, tmp_path: Path
) -> None:
    """One question of three seconds at most, where huggingface_hub asks seven times in 25; and what is kept here serves."""
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    hub.upload("someone/model", tmp_path / "model")
    NAGPipeline.from_pretrained("someone/model")
    hub.down, hub.asked = True, 0
    with pytest.raises(ConnectionError, match="path.* 'someone/other': there is no such folder, and the Hub"):
        NAGPipeline.from_pretrained("someone/other")
    with pytest.raises(ConnectionError, match="regressor.* 'someone/other': there is no such folder, and"):
        NAGPipeline.from_pretrained(tmp_path / "model", regressor="someone/other")
    assert hub.asked == 2
    assert same_weights(NAGPipeline.from_pretrained("someone/model").unet, unet)
