"""What a training uploads: opened from there, by plain diffusers where it can be, with a card that says whose it is."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from nag.files import HTTP_ERROR
from nag.finetune import merge
from nag.finetune.merge import MergeOptions
from nag.load import NAGPipeline
from nag.network.direction import DirectionHead
from tests.finetune.test_latents import command, sampled
from tests.seams.zoo_unets import stable_diffusion
from tests.shift.test_any_pipeline import captioned
from tests.simulated_hub import SimulatedHub

BASE = "someone/base"

pytestmark = pytest.mark.filterwarnings(  # of diffusers, which passes it on
    "ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning"
)


@pytest.fixture
def pushed(hub: SimulatedHub, tmp_path):
    """Trains from a base on the Hub and uploads; the card that lies there."""
    captioned(tmp_path / "data", count=56)
    stable_diffusion().save_pretrained(tmp_path / "base")
    hub.upload(BASE, tmp_path / "base")

    def train(kind, *words):
        command(kind, BASE, tmp_path, "--push_to_hub", "--hub_model_id", f"someone/{kind}", *words)
        (tmp_path / "card.md").write_bytes(hub.files[f"someone/{kind}"]["README.md"])
        return ModelCard.load(tmp_path / "card.md")

    return train


def test_a_lora_is_pushed_and_loaded_by_plain_diffusers(pushed, hub, monkeypatch):
    monkeypatch.setattr("diffusers.loaders.lora_base.HF_HUB_OFFLINE", False)
    card = pushed(
        "denoiser", "--lora_rank", 2, "--num_validation_images", 2, "--validation_inference_steps", 2
    )
    assert sorted(hub.files["someone/denoiser"]) == [
        "README.md",
        "adapter.json",
        "pytorch_lora_weights.safetensors",
        "samples.png",
    ]
    assert (card.data.base_model, card.data.base_model_relation) == (BASE, "adapter")
    assert {"lora", "noise-awareness-guidance"} <= set(card.data.tags)
    assert "![samples](samples.png)" in card.text
    assert f"nag finetune denoiser {BASE}" in card.text
    pipe = DiffusionPipeline.from_pretrained(BASE)
    before = sampled(pipe)
    pipe.load_lora_weights("someone/denoiser")
    assert not np.allclose(sampled(pipe), before, atol=1e-3)


def test_a_whole_network_is_a_fine_tuned_one(pushed):
    card = pushed("denoiser", "--num_validation_images", 0)
    assert (card.data.base_model, card.data.base_model_relation) == (BASE, "finetune")
    assert "samples.png" not in card.text
    assert type(DiffusionPipeline.from_pretrained("someone/denoiser")).__name__ == "StableDiffusionPipeline"


def test_a_merged_network_names_both(pushed, hub, tmp_path):
    pushed("denoiser", "--num_validation_images", 0)
    options = MergeOptions(
        model=BASE, other="someone/denoiser", strength=-0.5, output_dir=tmp_path / "merged"
    )
    merge.run(options)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ([BASE, "someone/denoiser"], "merge")
    assert f"nag finetune merge {BASE} someone/denoiser \\\n  --strength -0.5" in card.text


def test_a_null_adapter_comes_from_the_hub(pushed):
    assert pushed("denoiser", "--null_adapter_rank", 2).data.base_model_relation == "adapter"
    pipe = NAGPipeline.from_pretrained(BASE, null_adapter="someone/denoiser")
    plain = sampled(DiffusionPipeline.from_pretrained(BASE))
    assert np.array_equal(sampled(pipe), plain)
    assert not np.allclose(sampled(pipe, noise_guidance_scale=1.0), plain, atol=1e-4)


def test_a_regressor_and_a_head_come_from_the_hub(pushed):
    card = pushed("regressor", "--kind", "frozen", "--held_out_samples", 40, "--hidden_size", 8)
    assert card.data.base_model_relation == "adapter"
    assert "coverage of the 90 % interval" in card.text
    pipe = NAGPipeline.from_pretrained(BASE, regressor="someone/regressor")
    assert pipe.regressor.config.kind == "frozen"
    card = pushed("direction", "--weak", "null", "--held_out_samples", 4, "--hidden_size", 8)
    assert "cosine" in card.text
    assert DirectionHead.load("someone/direction").config.weak == "null"


def unwilling(*_, **__):
    raise OSError("401 Client Error. Repository Not Found.\nInvalid username or password.")


def unreachable(*_, **__):
    raise HTTP_ERROR("Name or service not known")


@pytest.mark.parametrize(
    ("answer", "said"), [(unwilling, "401 Client Error"), (unreachable, "Name or service")]
)
def test_where_nothing_can_be_uploaded_is_said_before_the_training(
    pushed, tmp_path, monkeypatch, answer, said
):
    monkeypatch.setattr("nag.finetune.model_card.create_repo", answer)
    with pytest.raises(AssertionError, match=f"hub_model_id must be .* got 'someone/denoiser': {said}"):
        pushed("denoiser")
    assert not (tmp_path / "denoiser").exists()


def test_a_repository_is_made_first(pushed, hub):
    pushed("denoiser", "--lora_rank", 2, "--num_validation_images", 0)
    assert hub.order == ["create", "create", "commit"]
