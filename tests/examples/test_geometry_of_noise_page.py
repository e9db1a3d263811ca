"""The page "The geometry of noise" as a file, and in a browser."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from tests.examples.geometry_page import EXPECTED, HERE, assert_numbers, build

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")


# The file


class Page(HTMLParser):
    """Elements that name something outside of the file, and the ids and labels inside."""

    def __init__(self, text: str):
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            if value is not None and not value.startswith(("#", "data:")):
                self.outside.append(f"{tag} {name}={value}")


def test_the_page_is_one_file_that_needs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    build.main()
    target = tmp_path / "outputs" / "geometry_of_noise" / "index.html"
    assert [path.name for path in target.parent.iterdir()] == ["index.html"]
    assert "index.html: 3" in capsys.readouterr().out
    text = target.read_text(encoding="utf-8")
    assert text == build.build()
    page = Page(text)
    assert page.outside == []
    for forbidden in (
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "@import",
        "url(",
        "WebSocket",
        "http://",
        "https://",
    ):
        assert forbidden not in text, forbidden
    assert len(text) < 500e3
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [id_ for id_ in EXPECTED if id_ in ids] == list(EXPECTED)


def test_every_control_has_a_name_to_read():
    page = Page(build.build())
    labels = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
    for tag, attributes in page.tags:
        if tag == "select" or (tag == "input" and attributes["type"] == "range"):
            assert attributes["id"] in labels
        if tag == "canvas":
            assert attributes["aria-label"]


def test_nothing_is_left_of_a_build_that_fails(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("before", encoding="utf-8")

    def fail():
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", fail)
    monkeypatch.setattr(sys, "argv", ["build.py", "--output", str(target)])
    with pytest.raises(KeyboardInterrupt):
        build.main()
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["before"]


def test_the_data_of_the_page_are_the_library_s():
    data = json.loads(re.search(r'id="data">(.*?)</script>', build.build(), re.DOTALL)[1])
    assert data["priors"].keys() == build.PRIORS.keys()
    for name, one in data["priors"].items():
        prior = build.prior(name)
        assert one["t"] == prior.t.tolist()
        assert one["log_probability"] == prior.log_probability.tolist()
        middle = torch.tensor([(one["low"] + one["high"]) / 2], dtype=torch.float64)
        assert one["log_density"] == pytest.approx(float(prior.log_prob(middle)), abs=1e-12)


@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_the_screenshots_are_there_and_small(name, width):
    path = HERE.parent.parent / "docs" / "images" / f"geometry_of_noise_{name}.png"
    assert path.stat().st_size < 400e3
    with Image.open(path) as picture:
        assert picture.width % width == 0


# The browser


def browse(address, folder, size):
    """The document as a browser without a window leaves it."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert browser, (
        f"No browser: the page is tested in Chromium. Put one of {', '.join(BROWSERS)} on the PATH."
    )
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder}",
        f"--window-size={size}",
        "--virtual-time-budget=60000",
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_every_control_moves_its_figure_in_a_browser(tmp_path, size):
    page = tmp_path / "page.html"
    page.write_text(build.build(), encoding="utf-8")
    document = browse(f"{page.as_uri()}#selftest", tmp_path / "profile", size)
    found = re.search(r'<script type="application/json" id="selftest">(.*?)</script>', document, re.DOTALL)
    assert found, "The page did not finish its test of itself."
    result = json.loads(found[1])
    assert result["complaints"] == []
    assert result["overflow"] == 0
    assert {one["figure"] for one in result["snapshots"]} == set(EXPECTED)
    for one in result["snapshots"]:
        where = f"{one['figure']}: {one['control']}"
        if one["control"] not in ("start", "reset"):
            assert one["pixels_changed"] or one["numbers_changed"], where
        if one["control"] in ("play", "spin"):
            assert one["moved"], where
            assert one["stopped"], where
        if one["control"] == "reset":
            assert one["same"], where
        assert_numbers(one["figure"], one["state"], one["numbers"])
    controls = re.findall(r'<(?:input|select)[^>]*\bname="(\w+)"', build.build())
    moved = [one["control"].split(" ")[0] for one in result["snapshots"]]
    assert set(controls) <= set(moved)
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Shift+ArrowUp"):
        with_key = {one["figure"] for one in result["snapshots"] if one["control"].endswith(f" {key}")}
        assert with_key == set(EXPECTED), key
    assert {one["figure"] for one in result["snapshots"] if one["control"].endswith(" drag")} == set(EXPECTED)


@pytest.mark.slow
def test_a_phone_s_width_needs_no_scrolling_sideways(tmp_path):
    """A window is never narrower than 500 pixels in Chromium, a frame is."""
    (tmp_path / "page.html").write_text(build.build(), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        """<iframe src="page.html" width="390" height="844"></iframe>
        <script>addEventListener("load", () => {
          const page = document.querySelector("iframe").contentDocument.documentElement;
          const sizes = document.body.appendChild(document.createElement("p"));
          sizes.textContent = `${page.clientWidth} of ${page.scrollWidth} pixels`;
        });</script>""",
        encoding="utf-8",
    )
    found = re.search(r"(\d+) of (\d+) pixels</p>", browse(frame.as_uri(), tmp_path / "profile", "500,900"))
    assert found
    assert 360 <= int(found[1]) <= 390
    assert found[1] == found[2]
