"""docs/site/pages.py: where links between files of the repository lead on the site, and notebooks."""

import base64
import runpy
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages():
    return runpy.run_path(str(ROOT / "docs" / "site" / "pages.py"))


@pytest.mark.parametrize(
    ("page", "link", "leads"),
    [
        ("README.md", "docs/deploy.md#serve-it", "deploy.md#serve-it"),
        ("README.md", "lightning_logs/README.md", "run-folder.md"),
        ("README.md", "CITATION.cff", "CITATION.cff"),
        ("docs/deploy.md", "../README.md", "index.md"),
        ("docs/deploy.md", "../configs/quickstart.yaml", "configs/quickstart.yaml"),
        ("docs/deploy.md", "explain.md", "explain.md"),
        ("lightning_logs/README.md", "../docs/study.md", "study.md"),
    ],
)
def test_links_between_files_are_links_between_pages(pages, page, link, leads):
    text = f"[words]({link}), ![picture]({link}), `[code]({link})`\n```\n[code]({link})\n```\n"
    expected = f"[words]({leads}), ![picture]({leads}), `[code]({link})`\n```\n[code]({link})\n```\n"
    lead = lambda target, anchor: pages["uri_of"](target) + anchor  # noqa: E731
    assert pages["follow"](ROOT / page, text, lead) == expected


@pytest.mark.parametrize("link", ["https://example.org/a.md", "mailto:a@example.org", "#here", "docs/no.md"])
def test_other_links_stay(pages, link):
    text = f"[words]({link})"
    assert pages["follow"](ROOT / "README.md", text, lambda target, anchor: "elsewhere") == text


def test_a_notebook_is_a_page_with_its_outputs_which_nothing_runs(pages, tmp_path):
    from mkdocs.config.defaults import MkDocsConfig

    picture = (ROOT / "docs" / "explain.png").read_bytes()
    shown = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(picture).decode()})
    printed = nbformat.v4.new_output("stream", text="42\n")
    cell = nbformat.v4.new_code_cell("raise RuntimeError", outputs=[printed, shown])
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell]), path)
    config = MkDocsConfig()
    config.load_dict({"site_name": "a", "docs_dir": str(ROOT / "docs")})
    config.validate()
    config.plugins._current_plugin = None  # which mkdocs sets before it calls a hook
    pages["notebook_files"].__globals__["EXAMPLES"] = tmp_path
    page, notebook, drawn = pages["notebook_files"](path, config)
    assert page.src_uri == "examples/a.md"
    assert page.content_string.lstrip().startswith("# Title\n")
    assert "```python\nraise RuntimeError\n```" in page.content_string
    assert "    42\n" in page.content_string
    assert f"({drawn.src_uri.removeprefix('examples/')})" in page.content_string
    assert drawn.content_bytes == picture
    assert notebook.content_bytes == path.read_bytes()
