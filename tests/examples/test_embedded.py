"""What comes with the repository: the model, its unconditional twin, the regressors, the images; snippets and tutorials."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

from nag.cli.main import main
from nag.load import NAGPipeline
from nag.network.regressor import NoiseLevelRegressor
from nag.quality.feature_network import SmallClassifier
from nag.shift.accuracy import measure_accuracy
from nag.shift.images import load_images

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "examples" / "fashion_mnist"


def held_out(name: str, count: int):
    return load_images(
        data=HOME / "data" / f"{name}.parquet",
        channels=1,
        resolution=16,
        label_column="label",
        max_samples=count,
        progress=False,
    )


def test_it_is_small_and_holds_no_pickle_and_no_path_of_a_machine():
    files = [path for path in HOME.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} == {".py", ".json", ".md", ".safetensors", ".parquet"}
    for path in files:
        if path.suffix in {".json", ".md"}:
            assert not re.search(
                r"(^|[\s\"'=])/(tmp|home|work|root|Users)/", path.read_text(encoding="utf-8")
            ), path


def test_held_out_images_are_three_thousand():
    assert [len(held_out(name, 5000)) for name in ("head", "calibration", "test")] == [1200, 800, 1000]


@pytest.mark.parametrize("cls", [DDPMPipeline, DDIMPipeline])
def test_the_twin_samples_bit_for_bit_as_in_diffusers(cls):
    plain = cls.from_pretrained(HOME / "model_unconditional")
    mine = NAGPipeline.from_pretrained(HOME / "model_unconditional")
    if cls is DDIMPipeline:
        plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config)
    mine.scheduler = type(plain.scheduler).from_config(plain.scheduler.config)
    for pipe in (plain, mine):
        pipe.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    expected = plain(generator=torch.Generator().manual_seed(3), **arguments).images
    found = mine(generator=torch.Generator().manual_seed(3), noise_guidance_scale=0.0, **arguments).images
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=0)
    assert found.std() > 0.05  # pictures, not grey


def test_the_model_draws_the_class_that_it_is_asked_for():
    pipe = NAGPipeline.from_pretrained(HOME / "model")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(40) % 10
    images = pipe(
        class_labels=labels,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    classifier = SmallClassifier.from_pretrained(HOME / "model" / "classifier").eval()
    with torch.no_grad():
        right = (classifier.logits(images * 2 - 1).argmax(dim=1) == labels).float().mean().item()
    assert right > 0.7  # 0.90 on real images; chance is 0.1


@pytest.mark.slow
def test_the_full_regressor_is_near_the_fisher_floor():
    regressor = NoiseLevelRegressor.from_pretrained(HOME / "regressors" / "full").eval()
    levels = torch.tensor([-1.0, 0.0, 1.5, 3.0, 5.0])
    found = measure_accuracy(regressor, held_out("test", 400).tensor(), log_snr=levels)
    # 400 states: 3.5 % on each ratio
    assert found.worst_ratio(0, 3) < 1.5
    assert found.worst_ratio(-1, 5) < 2.5
    assert 0.86 < found.coverage_90 < 0.94


def test_the_frozen_head_belongs_to_the_model():
    pipe = NAGPipeline.from_pretrained(HOME / "model", regressor=HOME / "regressors" / "frozen")
    assert pipe.regressor.network is pipe.unet
    with pytest.raises(ValueError, match="unet must"):
        NAGPipeline.from_pretrained(HOME / "model_unconditional", regressor=HOME / "regressors" / "frozen")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md")
    for number, (language, code) in enumerate(blocks(page))
    if language == "python"
]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture
def folder_with_examples(monkeypatch, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", SNIPPETS)
@pytest.mark.usefixtures("folder_with_examples")
def test_snippets_run(code):
    exec(code, {"held_out_images": held_out("test", 16).tensor()})


# an untrained field does not vanish; few samples are said to be few
@pytest.mark.filterwarnings("ignore:gradient_norm_threshold must be met")
@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.usefixtures("folder_with_examples")
def test_tutorials_run(page):
    """All blocks of a page, one after the other: commands by the command line's own parser, Python in one namespace."""
    names: dict[str, object] = {}
    for language, code in blocks(page):
        if language == "python":
            exec(code, names)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "nag"
                main(words)


def test_the_page_of_evidence_shows_what_was_measured(monkeypatch):
    """Its tables are those that the committed cells give, so no number in them was typed."""
    monkeypatch.syspath_prepend(HOME)
    import evidence

    drawn = evidence.tables(ROOT / "docs" / "evidence").strip()
    assert drawn in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_every_row_of_the_results_is_a_measured_cell():
    import json

    rows = re.findall(
        r"\| ([+-]\d\.\d{3}) ± (\d\.\d{3}) \| \**([\d.]+) / ([\d.]+)\** \|",
        (ROOT / "docs" / "results.md").read_text(),
    )
    cells = [json.loads(path.read_text()) for path in (ROOT / "docs" / "evidence").glob("cell-*.json")]
    assert len(rows) > 10
    for shift, error, *distances in rows:
        digits = len(distances[0].split(".")[1])
        found = [
            cell
            for cell in cells
            if f"{cell['mean_shift']:+.3f}" == shift and f"{cell['mean_shift_standard_error']:.3f}" == error
            and [f"{row['frechet']:.{digits}f}" for row in cell["seeds"]] == distances
        ]  # fmt: skip
        assert found, (shift, error, distances)
