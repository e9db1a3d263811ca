"""A learned null embedding: zeros at first, trained by hidden samples alone, and never in a plain checkpoint."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import load_file
from torch import nn

from nag.network.null import null_level
from nag.network.table import level_modules
from tests.models import tiny_unet, write_parquet

ROOT = Path(__file__).resolve().parents[2]
MASK = torch.tensor([True, False, True, False])


@pytest.fixture
def study(monkeypatch):
    """The script; it imports its neighbours, as a script's folder is on the path."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "evidence")
    for name in ("run", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import learned_null

    return learned_null


def states(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def learned(study) -> nn.Module:
    """A network whose null embedding is not zero any more."""
    model = tiny_unet()
    for vector in study.learn_null_embedding(model):
        nn.init.normal_(vector, generator=torch.Generator().manual_seed(1))
    return model


def silenced(model: nn.Module) -> nn.Module:
    """Oracle: the network whose last embedding layer gives the null embedding, whatever it is told."""
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.time_embedding.linear_2.weight)
    twin.time_embedding.linear_2.bias.data.copy_(model.time_embedding.null_embedding)
    return twin


@torch.no_grad()
def test_it_starts_as_the_zero_embedding(study):
    model = tiny_unet()

    def outputs() -> list[torch.Tensor]:
        found = [model(states(), 3).sample]
        for mask in (None, MASK):
            with null_level(model, mask):
                found.append(model(states(), 3).sample)
        return found

    before, keys = outputs(), set(model.state_dict())
    vectors = study.learn_null_embedding(model)
    torch.testing.assert_close(outputs(), before, rtol=0, atol=0)
    assert len(vectors) == len(level_modules(model)) == len(set(model.state_dict()) - keys)
    assert all(isinstance(vector, nn.Parameter) and vector.requires_grad for vector in vectors)
    vectors[0].fill_(1)
    assert study.learn_null_embedding(model)[0] is vectors[0]  # asked again: kept
    assert vectors[0].min() == 1


@torch.no_grad()
def test_hidden_samples_see_the_null_embedding_instead_of_their_level(study):
    model = learned(study)
    null, told = silenced(model)(states(), 3).sample, model(states(), 3).sample
    with null_level(model):
        torch.testing.assert_close(model(states(), 900).sample, null, rtol=1e-5, atol=1e-6)
    with null_level(model, MASK):
        expected = torch.where(MASK[:, None, None, None], null, told)
        torch.testing.assert_close(model(states(), 3).sample, expected, rtol=1e-5, atol=1e-6)


def test_it_gets_a_gradient_from_hidden_samples_only(study):
    model = learned(study)
    vector = model.time_embedding.null_embedding

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        with null_level(model, MASK):
            output = model(states(), 3).sample
        return torch.autograd.grad(output[rows].square().sum(), vector)[0]

    assert gradient(~MASK).abs().max() == 0
    assert gradient(MASK).abs().min() > 0
    # oracle: the gradient of the silenced network's bias
    twin = silenced(model)
    loss = twin(states()[MASK], 3).sample.square().sum()
    expected = torch.autograd.grad(loss, twin.time_embedding.linear_2.bias)[0]
    torch.testing.assert_close(gradient(MASK), expected, rtol=1e-4, atol=1e-5)


def test_saving_keeps_the_checkpoint_plain_and_restoring_gives_all_back(study, tmp_path):
    model = learned(study)
    study.save(model, DDIMScheduler(), tmp_path / "model")
    opened = DDIMPipeline.from_pretrained(tmp_path / "model").unet
    assert set(opened.state_dict()) == set(tiny_unet().state_dict())
    study.restore(opened, tmp_path / "model")
    torch.testing.assert_close(opened.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps the precision of its first Accelerator for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_script_trains_it_with_everything_else(study, tmp_path, monkeypatch, fresh_accelerate):
    flags = {"max_train_steps": 4, "level_dropout": 0.5, "lr_warmup_steps": 1, "train_batch_size": 8}
    flags["learning_rate"] = 1e-2
    monkeypatch.setitem(study.MODELS, study.ZERO, ("tiny", flags))
    write_parquet(tmp_path / "data" / "tiny_16")
    base = tiny_unet(num_class_embeds=3)
    DDIMPipeline(unet=base, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "models" / "small_base")
    study.train_model(tmp_path / "models", tmp_path / "data")
    folder = tmp_path / "models" / study.LEARNED
    null = load_file(folder / study.NULL_FILE)
    assert set(null) == {"time_embedding.null_embedding"}
    assert null["time_embedding.null_embedding"].abs().max() > 1e-3
    trained = DDIMPipeline.from_pretrained(folder).unet
    assert (trained.conv_in.weight - base.conv_in.weight).abs().max() > 1e-4
    written = (folder / "model_index.json").stat().st_mtime_ns
    study.train_model(tmp_path / "models", tmp_path / "data")  # done already
    assert (folder / "model_index.json").stat().st_mtime_ns == written


def test_the_options_are_those_of_the_zero_embedding(study, tmp_path):
    """All that may change a number is as train.py asks `nag finetune` for it."""
    asked = study.COMMON | study.MODELS[study.ZERO][1]
    found = study.options_of(tmp_path, tmp_path)
    assert found.level_dropout == 0.1
    assert found == replace(found, **{k: v for k, v in asked.items() if k != "model"})


def test_the_table_is_what_was_measured(study, monkeypatch, tmp_path):
    import draw

    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    assert draw.learned_null() == "Not run: `python examples/evidence/learned_null.py`."
    number = {"value": 1.234, "standard_error": 0.056}
    row = {"null": "learned", "method": "plain", "steps": 50, "frechet": number, "recall": number}
    within = number | {"resampled_within_classes": True}
    row |= {"minus_plain": None, "minus_zeros": within}
    (tmp_path / "learned_null.json").write_text(json.dumps({"rows": [row]}))
    expected = "| learned | plain | 50 | 1.23 ± 0.06° | – | +1.23 ± 0.06 | 1.234 ± 0.056 |"
    assert draw.learned_null().splitlines()[-1] == expected
