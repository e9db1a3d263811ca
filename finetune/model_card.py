"""What is written beside a result: the card with its command, and the upload."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo

from nag.files import HTTP_ERROR
from nag.finetune.options import TrainingOptions

__all__ = ["command_line", "repository", "upload", "write_model_card"]

POSITIONAL = ("model", "other")
UNTOLD = (*POSITIONAL, "resume_from_checkpoint", "overwrite", "pause_at_step")


def command_line(name: str, options: Any) -> str:
    """The command that gives these options."""
    words = [" ".join(["nag finetune", name, *_models(options)])]
    for item in fields(options):
        value = getattr(options, item.name)
        if value is None or value == item.default or item.name in UNTOLD:
            continue
        words.append(
            f"--{'' if value is not False else 'no_'}{item.name}"
            + ("" if isinstance(value, bool) else f" {value}")
        )
    return " \\\n  ".join(words)


def _models(options: Any) -> list[str]:
    """The models that a result is made of."""
    return [str(one) for name in POSITIONAL if (one := getattr(options, name, None)) is not None]


def write_model_card(
    folder: Path,
    name: str,
    options: Any,
    *,
    title: str,
    text: str,
    figures: dict[str, Any] | None = None,
    relation: str = "adapter",
) -> None:
    """Writes `README.md` with the Hub's metadata, the exact command and the measured figures.

    The relation to its base is one of the Hub's: "finetune" for a whole model, "merge", and "adapter" for what lies beside one.
    `samples.png` in the folder is shown.
    """
    from huggingface_hub import ModelCard, ModelCardData

    bases = [one for one in _models(options) if not Path(one).exists()]
    data_set = getattr(options, "data", None)
    lora = (folder / "pytorch_lora_weights.safetensors").exists()
    data = ModelCardData(
        library_name="diffusers",
        base_model=bases if len(bases) > 1 else next(iter(bases), None),
        base_model_relation=relation if bases else None,
        datasets=None if data_set is None or Path(data_set).exists() else data_set,
        tags=["diffusers", *["lora"] * lora, "noise-awareness-guidance", "arxiv:2510.12497"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {title}\n",
        f"{text}\n",
        *["![samples](samples.png)\n"] * (folder / "samples.png").exists(),
        f"## Command\n\n```\n{command_line(name, options)}\n```\n",
    ]
    if figures:
        rows = "\n".join(
            f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
            for key, value in figures.items()
        )
        parts.append(f"## Figures\n\n| quantity | value |\n| --- | --- |\n{rows}\n")
    parts.append("Made with noise-awareness-guidance (arXiv 2510.12497, Noise Awareness Guidance).\n")
    ModelCard("\n".join(parts)).save(folder / "README.md")


def repository(options: TrainingOptions) -> str | None:
    """The repository on the Hub that `--push_to_hub` asks for, made if it is new. Before the training: a login may be missing."""
    if not options.push_to_hub:
        return None
    name = options.hub_model_id or options.output_dir.resolve().name
    try:
        return str(create_repo(name, private=options.hub_private_repo, exist_ok=True).repo_id)
    except (OSError, ValueError, HTTP_ERROR) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"hub_model_id must be a repository that you can write to, got {name!r}: {first} Log in with `hf auth login`, or "
            "leave --push_to_hub out."
        ) from error


def upload(folder: Path, options: TrainingOptions) -> None:
    """Uploads the finished folder, without checkpoints and logs, when `--push_to_hub` was given."""
    repo_id = repository(options)
    if repo_id is None:
        return
    from huggingface_hub import upload_folder

    upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message="Upload the result of nag finetune",
        ignore_patterns=[
            "checkpoint-*",
            ".checkpoint-*",
            ".part-*",
            f"{options.logging_dir}/*",
            "samples/*",
            "cache/*",
        ],
    )
