"""A pipeline that is saved while it is corrected is the plain one, and plain diffusers opens it."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import nag
from tests.seams.case import call
from tests.seams.exhibit import SCALE, Exhibit, everywhere
from tests.seams.zoo import zoo_where


@zoo_where(lambda case: case.name in ("Stable Diffusion", "DiT", "DDPM"))
def test_saved_while_corrected(exhibit: Exhibit, tmp_path: Path) -> None:
    assert exhibit.plain is not None
    exhibit.pipe.save_pretrained(tmp_path / "plain")
    with nag.corrected(exhibit.pipe, everywhere(SCALE)):
        call(exhibit.pipe, exhibit.case)
        exhibit.pipe.save_pretrained(tmp_path / "corrected")
    files = {
        folder: {
            path.relative_to(tmp_path / folder): path.read_bytes()
            for path in (tmp_path / folder).rglob("*")
            if path.is_file()
        }
        for folder in ("plain", "corrected")
    }
    assert Path("model_index.json") in files["plain"]
    assert files["corrected"] == files["plain"]
    opened = DiffusionPipeline.from_pretrained(tmp_path / "corrected")
    assert type(opened) is type(exhibit.pipe)
    output = call(opened, exhibit.case)
    torch.testing.assert_close(output, exhibit.plain, rtol=0, atol=0)
