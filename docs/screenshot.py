"""The picture of `docs/inspect.md`: the page of the demo's embeddings, as Chromium shows it.

    make demo && python docs/screenshot.py runs/demo.npz [--output docs/images/inspect.png]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1180, 2560  # down to the dendrogram


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, default=HERE / "images" / "inspect.png")
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("Chromium is not installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "report.html"), Path(folder, "page.png")
        subprocess.run([sys.executable, "-m", "hexssl", "inspect", str(given.file), "--key", "hex", "--labels",
                        "labels", "--superclass", "superclass", "--output", str(page)], check=True)
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--user-data-dir={folder}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}",
                        page.as_uri()], check=True, stderr=subprocess.DEVNULL)
        Image.open(picture).convert("RGB").quantize(128).save(given.output, optimize=True)
    print(f"{given.output}, {given.output.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
