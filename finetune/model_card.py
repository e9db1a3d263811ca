"""Model cards and uploads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nag.finetune.options import TrainingOptions

__all__ = ["upload", "write_model_card"]


def write_model_card(
    folder: Path,
    *,
    title: str,
    text: str,
    command: str,
    base_model: str | None = None,
    dataset: str | None = None,
    figures: dict[str, Any] | None = None,
) -> None:
    """Writes `README.md` with the Hub's metadata, the exact command and the measured figures."""
    from huggingface_hub import ModelCard, ModelCardData

    hub_name = base_model if base_model and not Path(base_model).exists() else None
    data = ModelCardData(
        library_name="diffusers",
        base_model=hub_name,
        datasets=dataset,
        tags=["diffusers", "noise-awareness-guidance", "arxiv:2510.12497"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {title}\n",
        f"{text}\n",
        "## Training\n",
        f"```\n{command}\n```\n",
    ]
    if figures:
        rows = "\n".join(
            f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in figures.items()
        )
        parts.append(f"## Figures\n\n| quantity | value |\n| --- | --- |\n{rows}\n")
    parts.append("Made with noise-awareness-guidance (arXiv 2510.12497, Noise Awareness Guidance).\n")
    ModelCard("\n".join(parts)).save(folder / "README.md")


def upload(folder: Path, options: TrainingOptions) -> None:
    """Uploads the finished folder, without checkpoints and logs, when `--push_to_hub` was given."""
    if not options.push_to_hub:
        return
    from huggingface_hub import create_repo, upload_folder

    repo = create_repo(
        options.hub_model_id or folder.resolve().name, private=options.hub_private_repo, exist_ok=True
    )
    upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message="Upload the result of nag finetune",
        ignore_patterns=["checkpoint-*", ".checkpoint-*", ".part-*", f"{options.logging_dir}/*", "samples/*"],
    )
