"""Draws docs/compatibility.md from the verdicts that `test_diffusers_source.py` writes down.

python -m tests.seams.compatibility compatibility.json > docs/compatibility.md
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["table"]

LAWS = ("off", "classifier_free", "gradient", "class_guidance", "lora", "calibrated", "recorded")
HEAD = """# Compatibility

Each pipeline below was built of tiny parts, with the components and the call that diffusers tests it with, and run

- off: with a scale of 0 and with a watching correction; bit-identical to plain diffusers, and nothing is left behind
- classifier-free: guided, and compared with guidance written by hand on a copy
- gradient: guided by the gradient of a regressor that is known by hand, and compared with that gradient added on a copy to what its
  scheduler is handed
- class guidance: one of these two while the pipeline's own guidance by text or class acts too, in rows, in calls or told to a
  distilled network; switched on where diffusers' call has it off
- LoRA: off and one of these two, with a random LoRA on the linear layers of its networks, by diffusers' own `add_adapter`
- calibrated: with a table of its nominal levels, which changes nothing
- recorded: the states that a correction sees are those that the scheduler is handed

Image-to-image, inpainting and ControlNet pipelines are rows of their own.

```bash
export DIFFUSERS_SOURCE=path/to/diffusers NAG_COMPATIBILITY=compatibility.json
python -m pytest -m slow tests/seams/test_diffusers_source.py
python -m tests.seams.compatibility compatibility.json > docs/compatibility.md
```

diffusers 0.42.1 with the test cases of its source tree at 0.40.0.dev0, on a machine without the Hub and without torchvision.

| pipeline | network | off | classifier-free | gradient | class guidance | LoRA | calibrated | recorded |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def table(report: dict[str, Any]) -> str:
    """The page: a row for each pipeline class, its notes, and what was not tried."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    untried = [f"- {name}: {reason}" for name, reason in report["modules that do not import"].items()]
    for case in report["cases"]:
        if case["off"] == "yes":
            rows[case["pipeline"]].append(case)
        else:
            untried.append(f"- {case['pipeline']} ({case['case']}): {_short(case['off'] or case['runs'])}")
    notes: list[str] = []
    lines = []
    for pipeline in sorted(rows):
        networks = sorted({name for case in rows[pipeline] for name in case["networks"]})
        cells = [_cell([case[law] for case in rows[pipeline]], notes) for law in LAWS]
        lines.append(f"| {pipeline} | {', '.join(networks)} | {' | '.join(cells)} |")
    ran = sum(len(cases) for cases in rows.values())
    parts = [
        HEAD + "\n".join(lines),
        f"{len(rows)} pipeline classes, {ran} cases.",
        "\n".join(f"{i}. {_short(note)}" for i, note in enumerate(notes, 1)),
        "## Not tried\n\n" + "\n".join(untried),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _short(reason: str) -> str:
    """A reason in one line of a page."""
    if "huggingface.co" in reason or "OSError" in reason:
        return "plain diffusers: needs files from the Hub"
    return reason if len(reason) < 260 else reason[:256] + " ..."


def _cell(verdicts: list[str], notes: list[str]) -> str:
    """Yes where every case of the pipeline passes, else the numbers of its notes."""
    reasons = list(dict.fromkeys(verdict for verdict in verdicts if verdict != "yes"))
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    numbers = " ".join(f"[{notes.index(reason) + 1}]" for reason in reasons)
    return " ".join(part for part in ("yes" if "yes" in verdicts else "no", numbers) if part)


if __name__ == "__main__":
    sys.stdout.write(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
