"""Hooks of mkdocs: the pages of the repository that lie outside docs/, and where their links lead.

README.md is the first page, and every notebook of examples/ is one. The site has every file that a page
links to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "lightning_logs" / "README.md": "run-folder.md",
}
# code, in which nothing is a link, or a link's target
_CODE_OR_LINK = re.compile(r"```.*?```|`[^`\n]*`|(?<=\]\()[^)\s]+", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, the notebooks, and the files that any of them links to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    notebooks = sorted(EXAMPLES.glob("*.ipynb"))
    for path in notebooks:
        for file in notebook_files(path, config):
            files.append(file)
    items = [with_notebooks(item, notebooks) for item in config.nav or []]
    config.nav = [item for item in items if item is not None]
    for page in files.documentation_pages():
        for target, _ in linked(source(page), page.content_string):
            if target.is_file() and files.get_file_from_path(uri_of(target)) is None:
                files.append(File.generated(config, uri_of(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    here = os.path.dirname(page.file.src_uri)

    def lead(target: Path, anchor: str) -> str:
        return os.path.relpath(uri_of(target), here or ".") + anchor

    text = follow(source(page.file), markdown, lead)
    if source(page.file).suffix == ".ipynb":
        name = source(page.file).name
        text += f"\n\nThis page is the notebook [{name}]({name}), as it was saved.\n"
    return text


def notebook_files(path: Path, config: MkDocsConfig) -> Iterator[File]:
    """The page of a notebook, its pictures, and the notebook itself."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.setdefault("language_info", {"name": "python"})  # some programs leave it out
    names = {"output_files_dir": f"{path.stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, names)
    yield File.generated(config, uri_of(path), content=text)
    yield File.generated(config, f"examples/{path.name}", abs_src_path=str(path))
    for name, content in resources["outputs"].items():
        yield File.generated(config, f"examples/{name}", content=content)


def with_notebooks(item: object, notebooks: list[Path]) -> object:
    """An item of the navigation; the one of examples/ with its notebooks, or None where there are none."""
    if item != {"Examples": "examples"}:
        return item
    return {"Examples": [uri_of(path) for path in notebooks]} if notebooks else None


def source(file: File) -> Path:
    """Where the text of a page stands in the repository."""
    other = {uri: path for path, uri in PAGES.items()}
    if file.src_uri in other:
        return other[file.src_uri]
    if file.src_uri.startswith("examples/"):
        return (ROOT / file.src_uri).with_suffix(".ipynb")
    return DOCS / file.src_uri


def uri_of(path: Path) -> str:
    """Where a file of the repository stands among those that the site is made of."""
    if path in PAGES:
        return PAGES[path]
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path.parent == EXAMPLES and path.suffix == ".ipynb":
        return f"examples/{path.stem}.md"
    return path.relative_to(ROOT).as_posix()


def linked(page: Path, text: str) -> list[tuple[Path, str]]:
    """The files and anchors that a page links to, wherever they lie in the repository."""
    found: list[tuple[Path, str]] = []
    follow(page, text, lambda target, anchor: found.append((target, anchor)) or "")
    return found


def follow(page: Path, text: str, lead: Callable[[Path, str], str]) -> str:
    """The text with every link to a file of the repository as ``lead`` makes it of file and anchor."""

    def replace(match: re.Match[str]) -> str:
        link = match[0]
        if link.startswith(("`", "#")) or re.match(r"[a-z]+:", link):
            return link
        path, mark, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path))
        return lead(target, mark + anchor) if target.is_file() else link

    return _CODE_OR_LINK.sub(replace, text)
