"""What the documents say: every block of Python in them is run, those of one file one after the other."""

import re
from pathlib import Path

import pytest

import fastbackprop

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *GUIDES]


def text_of(document):
    return document.read_text(encoding="utf-8")


def python_blocks(document):
    """The code of each block, below as many empty lines as there are lines before it: tracebacks then tell the line."""
    text = text_of(document)
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text.count("\n", 0, block.start(1)) + block[1]


WITH_BLOCKS = [document for document in DOCUMENTS if any(python_blocks(document))]


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda document: document.name)
def test_every_block_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = list(python_blocks(document))
    for module in re.findall(r"^(?:from|import) (sklearn|scipy|torch|dask|zarr)\b", "".join(code), re.MULTILINE):
        pytest.importorskip(module, reason="see the extras `examples` and `torch`")
    names = {"__name__": document.stem}
    for block in code:
        exec(compile(block, str(document), "exec"), names)


def test_every_guide_checks_what_it_says():
    assert len(GUIDES) > 5
    for document in [ROOT / "README.md", *GUIDES]:
        if document != ROOT / "docs" / "README.md":
            assert "assert " in "".join(python_blocks(document)), document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_within_the_repository(document):
    for target in re.findall(r"\]\((?!https?://)([^)#]*)", text_of(document)):
        assert (document.parent / target).exists(), target


def test_the_index_lists_every_guide():
    linked = set(re.findall(r"\]\((\w+\.md)\)", text_of(ROOT / "docs" / "README.md")))
    assert linked == {document.name for document in GUIDES} - {"README.md"}


def test_the_changelog_knows_this_version():
    assert f"## {fastbackprop.__version__}" in text_of(ROOT / "CHANGELOG.md")
