"""Whether the drift report is all right in a browser: run a drift, write its page, load it in headless Chromium.

python tools/render_report.py [--keep FOLDER]

Fails on anything on the console, on a request for anything but the page, on a figure that has no size or whose text
lies outside of it, and on a page that is wider than the window, in a wide window and a narrow one, light and dark. With
--keep, page and screenshots stay there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tests" / "data" / "tiny-llama4"
TYPES = ["q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k"]
WINDOWS = {"wide": (1280, 2400), "narrow": (390, 2400)}
SCHEMES = {"dark": 0, "light": 1}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What is measured in the page. The report itself has no scripts: its frame is asked from a page around it.
MEASURE = """
<!doctype html><meta charset="utf-8"><title>waiting</title><style>body { margin: 0 }</style>
<iframe id="page" style="width: %(width)dpx; height: 4000px; border: 0"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  for (const one of page.querySelectorAll("details")) one.open = true;
  const figures = [...page.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg"), box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
    const outside = svg ? [...svg.querySelectorAll("text")].filter((text) => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 2 || own.right > box.right + 2 ||
        own.top < box.top - 2 || own.bottom > box.bottom + 2;
    }).map((text) => text.textContent) : [];
    return {label: figure.getAttribute("aria-label"), width: box.width, height: box.height, outside,
            shapes: svg ? svg.querySelectorAll("path, use").length : 0};
  });
  const requests = frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name);
  const style = frame.contentWindow.getComputedStyle(page.body);
  document.getElementById("found").textContent = JSON.stringify({
    figures, requests, width: root.scrollWidth, window: root.clientWidth, background: style.backgroundColor,
    color: style.color, scripts: page.scripts.length,
  });
  document.title = "done";
};
frame.src = "report.html";
</script>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the page and its screenshots")
    keep = parser.parse_args().keep
    browser = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if browser is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_report(folder)
        problems: list[str] = []
        for window, (width, height) in WINDOWS.items():
            for scheme, number in SCHEMES.items():
                run = Browser(browser, folder, number)
                found = [f"{window}, {scheme}: {one}" for one in run.problems(width, scheme)]
                run.picture(folder / f"{window}-{scheme}.png", width, height)
                problems += found
                print(f"{window} window, {scheme}: {'in order' if not found else f'{len(found)} problems'}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in (folder / "report.html", *folder.glob("*.png")):
                shutil.copy(path, keep)
    if problems:
        sys.exit("\n".join(problems))


def make_report(folder: Path) -> None:
    """The page of a real run: the checkpoint against five files, with labelled documents."""
    sources = [(ROOT / "LICENSE", "law"), (ROOT / "README.md", "manual")]
    with (folder / "text.jsonl").open("w") as file:
        for path, domain in sources:
            for part in re.split(r"\n\n+", path.read_text()):
                file.write(json.dumps({"text": part, "domain": domain}) + "\n")
    quantkit = [sys.executable, "-m", "quantkit"]
    types = [word for one in TYPES for word in ("--type", one)]
    subprocess.run([*quantkit, "convert", CHECKPOINT, folder / "{type}.gguf", *types], check=True, capture_output=True)
    files = [folder / f"{one}.gguf" for one in TYPES]
    options = [
        "--text",
        folder / "text.jsonl",
        "--context",
        "128",
        "--tokens",
        "4k",
        "--report",
        folder / "report.html",
    ]
    subprocess.run([*quantkit, "drift", CHECKPOINT, *files, *options], check=True, capture_output=True)
    print(f"report.html: {(folder / 'report.html').stat().st_size:,} bytes")


class Browser:
    """Headless Chromium with a colour scheme; its console is read from stderr."""

    def __init__(self, path: str, folder: Path, scheme: int) -> None:
        self._folder = folder
        self._command = [
            path, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            "--allow-file-access-from-files", "--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={folder / f'profile{scheme}'}",
        ]  # fmt: skip

    def _run(self, *arguments: str) -> tuple[str, list[str]]:
        """What it wrote, and the console's lines."""
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=180, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def picture(self, path: Path, width: int, height: int) -> None:
        """Chromium has no windows below 500 pixels: a frame is as narrow as is asked for."""
        around = self._folder / "picture.html"
        frame = f'<iframe src="report.html" style="width:{width}px;height:{height}px;border:0"></iframe>'
        around.write_text(f'<!doctype html><body style="margin:0">{frame}')
        size = f"--window-size={max(width, 500)},{height}"
        self._run(f"--screenshot={path}", size, around.as_uri())

    def problems(self, width: int, scheme: str) -> list[str]:
        """Of the page by itself, and in a frame of this width."""
        page = self._folder / "report.html"
        _, console = self._run("--dump-dom", page.as_uri())
        around = self._folder / "measure.html"
        around.write_text(MEASURE % {"width": width})
        content, more = self._run("--dump-dom", "--window-size=1400,4000", around.as_uri())
        match = re.search(r'<pre id="found">(.*?)</pre>', content, re.DOTALL)
        if match is None or not match[1]:
            return [f"the page did not load: {[*console, *more]}"]
        found = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        problems = [f"on the console: {line}" for line in (*console, *more)]
        problems += [f"asks for {one}" for one in found["requests"]]
        wanted = 1 + 2 + 2 + 4 * len(TYPES)
        if len(found["figures"]) != wanted:
            problems.append(f"{len(found['figures'])} figures, not {wanted}")
        for one in found["figures"]:
            if min(one["width"], one["height"]) < 100 or one["shapes"] < 3:
                problems.append(f"an empty figure: {one['label']}")
            problems += [f"{text!r} lies outside of the figure: {one['label']}" for text in one["outside"]]
        if found["width"] > found["window"]:
            problems.append(f"the page is {found['width']} wide in a window of {found['window']}")
        if found["scripts"]:
            problems.append("the page has scripts")
        light = [sum(map(int, re.findall(r"\d+", found[name])[:3])) > 384 for name in ("background", "color")]
        if light != ([True, False] if scheme == "light" else [False, True]):
            problems.append(f"{found['color']} on {found['background']} is not {scheme}")
        return problems


if __name__ == "__main__":
    main()
