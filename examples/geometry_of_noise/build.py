"""Writes the page "The geometry of noise" as one file that needs no network.

    python examples/geometry_of_noise/build.py [--output FILE]

The page computes its figures in the browser (math.js). From here it gets the priors over noise levels, the nodes and
probabilities of `LevelPrior.quadrature`, and the data points, so that page and library sum over the same levels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jinja2

from nag import __version__
from nag.files import written_file
from nag.noise.process import EDM, Flow, GaussianProcess, VariancePreserving
from nag.theory import LevelPrior

HERE = Path(__file__).resolve().parent
# Panels of 16 levels, even in log-SNR. The posterior's width there is about 2 / sqrt(2 D): 0.125 at D = 128.
PANELS, COARSE_PANELS = 32, 12  # coarse ones are for figures with thousands of states, all in two dimensions

PATHS: dict[str, GaussianProcess] = {
    "flow": Flow(),
    "plain": EDM(sigma_min=0, sigma_max=1, rho=1),  # alpha = 1, sigma = t
    "vp": VariancePreserving(),
}
# name: path, t_low, t_high of a prior that is uniform in t
PRIORS: dict[str, tuple[str, float, float]] = {
    "flow": ("flow", 1e-5, 0.999),
    "flow_coarse": ("flow", 1e-5, 0.999),
    "flow_high_0.9": ("flow", 1e-5, 0.9),
    "flow_high_0.99": ("flow", 1e-5, 0.99),
    "flow_high_0.99999": ("flow", 1e-5, 0.99999),
    "flow_low_0.1": ("flow", 1e-1, 0.999),
    "flow_low_0.01": ("flow", 1e-2, 0.999),
    "flow_low_0.001": ("flow", 1e-3, 0.999),
    "plain": ("plain", 1e-5, 1.0),
    "vp": ("vp", 1e-5, 1.0),
}
POINTS: dict[str, list[list[float]]] = {
    "five": [[0.95, 0.35], [0.1, 1.05], [-0.95, 0.45], [-0.6, -0.85], [0.65, -0.8]],
    "three": [[0.8, -0.45], [-0.75, -0.5], [0.05, 0.85]],
    "one": [[0.0, 0.0]],
}
SCRIPTS = (
    "math.js",
    "numbers.js",
    "canvas.js",
    "page.js",
    *(
        f"figures/{name}.js"
        for name in ("flow", "posterior", "radius", "shells", "surface", "line", "terms", "race")
    ),
    "selftest.js",
)


def prior(name: str) -> LevelPrior:
    """A prior of the page, as the library has it."""
    path, low, high = PRIORS[name]
    panels = COARSE_PANELS if name.endswith("coarse") else PANELS
    return LevelPrior.quadrature(PATHS[path], panels=panels, t_low=low, t_high=high)


def page_data() -> dict[str, Any]:
    """What the page gets from the library: priors and points, with every digit."""
    priors = {}
    for name, (path, low, high) in PRIORS.items():
        levels = prior(name)
        middle = levels.t[len(levels.t) // 2 : len(levels.t) // 2 + 1]
        priors[name] = {
            "path": path,
            "low": low,
            "high": high,
            "t": levels.t.tolist(),
            "log_probability": levels.log_probability.tolist(),
            "log_density": float(levels.log_prob(middle)),  # the same at every level between low and high
        }
    return {"version": __version__, "priors": priors, "points": POINTS}


def build() -> str:
    """The page as text: template, style, scripts and data in one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    data = json.dumps(page_data(), allow_nan=False).replace("<", "\\u003c")
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    style = (HERE / "style.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html.jinja")
    return template.render(style=style, scripts=scripts, data=data, version=__version__, levels=16 * PANELS)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/geometry_of_noise/index.html"), help="file to write"
    )
    options = parser.parse_args()
    text = build()
    with written_file(options.output) as part:
        part.write_text(text, encoding="utf-8")
    print(f"{options.output}: {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
