"""A page as a browser shows it: a picture, what it says on its console, and how far it is too wide.

The page stands in a frame, so that it may be as narrow as a phone: windows may not.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (360, 1400)  # pixels
SCHEMES = {"light": 1, "dark": 0}  # as Blink numbers them
HEIGHT = 1600
FRAME = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="{height}" src="{page}"></iframe><pre id="seen"></pre>
<script>
onload = () => {{
  const inner = document.querySelector("iframe").contentWindow, root = inner.document.documentElement
  const seen = {{
    wide: root.scrollWidth, shown: root.clientWidth, text: inner.document.body.innerText.trim().length,
    paper: inner.getComputedStyle(inner.document.body).backgroundColor,
    ink: inner.getComputedStyle(inner.document.body).color,
  }}
  document.getElementById("seen").textContent = JSON.stringify(seen)
}}
</script>
"""
SEEN = re.compile(r'<pre id="seen">(.*?)</pre>', re.DOTALL)
# A line that Chromium writes for what a page says: "[...:INFO:CONSOLE:7] "Uncaught ...", source: ...".
SAID = re.compile(r'CONSOLE[:(]\d+\)?\] "(.*?)", source', re.DOTALL)
COLOUR = re.compile(r"rgba?\((\d+), (\d+), (\d+)")


@dataclass(frozen=True)
class Look:
    """picture: a PNG; wide: pixels that the page needs, of which shown fit; text: its characters; paper
    and ink: how light they are, 0 to 255; said: what it wrote on the console.
    """

    picture: Path
    wide: int
    shown: int
    text: int
    paper: float
    ink: float
    said: list[str]


def browser() -> str:
    """The first that is installed; AssertionError without one."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert found, f"none of {', '.join(PROGRAMS)} is installed (apt install chromium)"
    return found


def look(page: Path, width: int, scheme: str, out: Path) -> Look:
    """What a page is at so many pixels, in light or dark colours; its picture goes into folder out."""
    name = f"{page.parent.name}-{page.stem}-{width}-{scheme}"
    frame, picture = out / f"{name}.html", out / f"{name}.png"
    frame.write_text(FRAME.format(width=width, height=HEIGHT, page=page.absolute().as_uri()))
    common = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    common += [
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
    ]
    common += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    common += [f"--window-size={max(width, 600)},{HEIGHT}"]
    ran(*common, f"--screenshot={picture}", frame.as_uri())
    done = ran(*common, "--dump-dom", frame.as_uri())
    seen = json.loads(unescape(SEEN.search(done.stdout)[1]))
    colours = (lightness(seen.pop(name)) for name in ("paper", "ink"))
    return Look(
        picture, seen["wide"], seen["shown"], seen["text"], *colours, SAID.findall(done.stderr)
    )


def ran(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def lightness(colour: str) -> float:
    """0 to 255 of `rgb(r, g, b)`; of a transparent one that of white paper."""
    if colour == "rgba(0, 0, 0, 0)":
        return 255
    red, green, blue = map(int, COLOUR.match(colour).groups())
    return 0.299 * red + 0.587 * green + 0.114 * blue
