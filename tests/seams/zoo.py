"""All pipelines of the zoo by name: tiny real components, built from their configuration, no file of the Hub."""

from __future__ import annotations

from tests.seams.case import Case
from tests.seams.zoo_transformers import TRANSFORMERS
from tests.seams.zoo_unets import UNETS
from tests.seams.zoo_videos import VIDEOS

__all__ = ["ZOO"]

ZOO: dict[str, Case] = {case.name: case for case in (*UNETS, *TRANSFORMERS, *VIDEOS)}
