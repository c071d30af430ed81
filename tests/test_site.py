"""The site: every page is in its contents, tables come from the registries, links out of docs/ do not break."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import antibackdoor

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


class _Loader(yaml.SafeLoader):
    """Reads ``!ENV`` of mkdocs as what it is given."""


_Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node))
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import site_hooks
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return site_hooks


def named(contents: Any) -> list[str]:
    if isinstance(contents, str):
        return [contents]
    values = contents.values() if isinstance(contents, dict) else contents
    return [page for value in values for page in named(value)]


def test_every_page_is_in_the_contents_once():
    listed = named(CONFIG["nav"])
    assert len(listed) == len(set(listed))
    apart = {line.strip("/") for line in CONFIG["not_in_nav"].split()}
    assert set(listed) | apart >= set(PAGES)
    assert set(listed) <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if not re.match(r"[a-z]+:", link):
            assert ((DOCS / page).parent / link).exists(), link


@pytest.mark.parametrize("family", ["attacks", "defences", "signals"])
def test_a_table_has_every_method(family, hooks):
    registry = getattr(antibackdoor, family.upper())
    rows = re.findall(r"^\| \[?`([\w-]+)`", hooks.table(family, "index.md"), re.MULTILINE)
    assert rows == list(registry)


@pytest.mark.parametrize("family", ["attacks", "defences"])
def test_the_settings_of_every_method_are_on_one_page(family, hooks):
    pages = [*hooks.PAGES[family], {"attacks": "attacks/index.md", "defences": "defences/overview.md"}[family]]
    shown = [
        name for page in pages for name in re.findall(r"^### Settings of (\S+)", hooks.settings(family, page), re.M)
    ]
    assert sorted(shown) == sorted(getattr(antibackdoor, family.upper()))
    for page in pages[:-1]:
        if hooks.settings(family, page):
            assert f"<!-- settings: {family} -->" in (DOCS / page).read_text(encoding="utf-8"), page


def test_a_setting_has_its_default_and_its_meaning(hooks):
    text = hooks.settings("attacks", "attacks/static.md")
    sig = text[text.index("### Settings of sig") :]
    assert "| `attack.delta` | 40 | Amplitude in training images, in steps of 255. |" in sig
    assert "| `attack.test_delta` | none | Amplitude in test images; that of training if None. |" in sig
    assert "`defence.alpha` | 0.01 | " in hooks.settings("defences", "defences.md")


def test_the_public_names_are_on_the_page(hooks):
    text = hooks.on_page_markdown("<!-- api -->", page=_page("api.md"), config=_config(), files=None)
    assert "::: antibackdoor.api.train" in text
    assert "::: antibackdoor.result.Result\n" in text
    classes = [name for name in antibackdoor.__all__ if not name.isupper()]
    assert text.count(":::") == len(classes)


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("", "[data](data.md), the workflow (`examples/ci/github-scan.yml`)"),
        (
            "https://x.org/a/b",
            "[data](data.md), [the workflow](https://x.org/a/b/blob/main/examples/ci/github-scan.yml)",
        ),
    ],
)
def test_links_out_of_the_folder(repository, expected, hooks):
    text = "[data](data.md), [the workflow](../examples/ci/github-scan.yml)"
    assert hooks.links_out(text, "pipelines.md", repository) == expected
    assert hooks.links_out("[up](../data.md)", "attacks/static.md", repository) == "[up](../data.md)"


def test_pictures_of_the_home_page_are_small():
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 300_000, picture.name


class _page:
    def __init__(self, place: str) -> None:
        self.file = type("File", (), {"src_uri": place})


class _config:
    repo_url = ""


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert ":class:" not in text
    assert "antibackdoor.api.train" in text
    assert "Settings of witnesses" in (tmp_path / "site" / "defences" / "index.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], "nothing is loaded from elsewhere"
