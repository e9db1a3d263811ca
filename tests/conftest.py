"""Shared by all tests: no network, no cache of the user's, one thread, checked shapes, and small real components."""

import atexit
import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="nag-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["HF_HOME"] = CACHE  # these before anything imports huggingface_hub
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NAG_CACHE"] = ""  # no measurement is kept, unless a test says where
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    "nag", "check_shapes.check_shapes"
)  # every array annotation of nag is enforced in every test

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from tests import models
from tests.models import tiny_unet
from tests.simulated_hub import hub  # noqa: F401 - a fixture

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the pipelines of the zoo run: `pytest --device cuda --dtype bfloat16`."""
    parser.addoption("--device", default="cpu", help="device of the pipelines under test")
    parser.addoption(
        "--dtype", default="float32", help="their precision: float64, float32, bfloat16 or float16"
    )


def pytest_configure(config: pytest.Config) -> None:
    models.PLACE = torch.device(config.getoption("--device")), getattr(torch, config.getoption("--dtype"))


@pytest.fixture
def unet() -> UNet2DModel:
    """Unconditional, 8x8, one channel."""
    return tiny_unet()


@pytest.fixture
def class_unet() -> UNet2DModel:
    """Class-conditional, 8x8, one channel: labels 0, 1, 2 and the null class 3."""
    return tiny_unet(num_class_embeds=4)


@pytest.fixture
def ddim_scheduler() -> DDIMScheduler:
    """DDIM, linear betas, trailing timesteps, no clipping."""
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


@pytest.fixture
def ddpm_scheduler() -> DDPMScheduler:
    """DDPM, linear betas, trailing timesteps, no clipping."""
    return DDPMScheduler(clip_sample=False, timestep_spacing="trailing")


@pytest.fixture
def generator() -> torch.Generator:
    """A local generator on the CPU, seed 0."""
    return torch.Generator().manual_seed(0)
