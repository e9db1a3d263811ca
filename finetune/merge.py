"""`nag finetune merge`: a checkpoint between two others, or with an adapter folded in; see `nag.network.merged`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["MergeOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Write a checkpoint between two others: the first, moved towards the second by a strength.

    nag finetune merge MODEL STUDENT --strength 0.5 --output_dir merged
    """

    model: tyro.conf.Positional[str]
    """Pipeline: a folder or a Hub id."""
    other: tyro.conf.Positional[str]
    """A pipeline of the same network, or the folder of an adapter of `nag finetune distill`."""
    strength: float = 0.5
    """How far to go: 0 is MODEL, 1 the other, below 0 away from it."""
    output_dir: Annotated[Path, tyro.conf.arg(help="Folder of the new pipeline.")]
    overwrite: bool = False
    """Write into a folder that is not empty."""


def run(options: MergeOptions) -> None:
    """Writes the merged pipeline; the first one's scheduler and other parts stay, but nothing that belongs to its weights:
    regressor, null adapter, direction head, calibration and tuned settings lie beside the first alone.
    """
    from nag.files import written_whole
    from nag.finetune.model_card import write_model_card
    from nag.load import NAGPipeline
    from nag.network.merged import merged, set_weights
    from nag.seams import detach
    from nag.shift.calls import main_network

    folder = options.output_dir
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise FileExistsError(f"output_dir must be empty, got {folder}. Pass --overwrite or another folder.")
    pipe = NAGPipeline.from_pretrained(options.model)
    network = main_network(pipe)
    set_weights(network, merged(network, options.other, options.strength))
    with written_whole(folder) as part:
        detach(pipe).save_pretrained(part)
        write_model_card(
            part,
            "merge",
            options,
            title="Denoiser between two others",
            text=f"Weights {options.strength:g} of the way from the first model to the second.",
            relation="merge",
        )
    print(f"Written: {folder}")


if __name__ == "__main__":
    run(tyro.cli(MergeOptions, use_underscores=True))
