#!/usr/bin/env python3
"""Writes DIR/calib.txt and DIR/eval.txt: English prose to measure with, from Debian's manuals.

    python tools/bench/texts.py DIR

The pages of the packages debian-reference-en and developers-reference go to the two files by turns, so that the files
are alike and have no paragraph in common. Only paragraphs are kept: no navigation, no listings. Needs apt-get (after
an apt-get update) and dpkg; installs nothing. The texts are data to measure with and no part of this project.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = ("debian-reference-en", "developers-reference")
OTHER_LANGUAGES = frozenset(("de", "es", "fr", "it", "ja", "pt", "ru", "zh", "pt-br", "zh-cn", "zh-tw"))
SHORTEST = 80  # characters of a paragraph
PAGE = 3000  # characters of prose that a page must have


class Prose(HTMLParser):
    """Collects what stands in <p>: headings, tables of contents and listings do not."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.words: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self.words = []

    def handle_endtag(self, tag: str) -> None:
        if tag != "p" or self.words is None:
            return
        text = " ".join("".join(self.words).split())
        self.words = None
        if len(text) >= SHORTEST:
            self.paragraphs.append(text)

    def handle_data(self, data: str) -> None:
        if self.words is not None:
            self.words.append(data)


def prose(page: Path, seen: set[str]) -> str:
    """The paragraphs of a page that are not in `seen`; they are added to it."""
    parser = Prose()
    parser.feed(page.read_text(errors="replace"))
    fresh = [text for text in dict.fromkeys(parser.paragraphs) if text not in seen]
    seen.update(fresh)
    return "\n".join(fresh)


def is_english(page: Path) -> bool:
    """Debian names translations by a suffix (ch01.de.html) or a directory (de/ch01.html)."""
    return OTHER_LANGUAGES.isdisjoint(part for name in page.parts for part in name.split("."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=work, check=True)
        for package in Path(work).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), f"{work}/files"], check=True)
        root = Path(work, "files")
        seen: set[str] = set()
        found = (page for page in sorted(root.rglob("*.html")) if is_english(page.relative_to(root)))
        texts = [prose(page, seen) for page in found if page.stem != page.parent.name]  # not the one-page edition
    pages = [text for text in texts if len(text) >= PAGE]
    for name, part in (("calib.txt", pages[0::2]), ("eval.txt", pages[1::2])):
        (folder / name).write_text("\n\n".join(part) + "\n")
        print(f"{folder / name}: {len(part)} pages, {sum(map(len, part)):,} characters")


if __name__ == "__main__":
    main()
