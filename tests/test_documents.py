"""What the documents say: every block of Python in them is run, those of one file one after the other."""

import importlib.util
import itertools
import re
import tomllib
from pathlib import Path

import pytest

import fastbackprop

ROOT = Path(__file__).parents[1]


def text_of(document):
    return document.read_text(encoding="utf-8")


GUIDES = [file for file in sorted((ROOT / "docs").glob("*.md")) if "```{include}" not in text_of(file)]
"""Pages that include another file are for the site alone."""
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *GUIDES]


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


def test_the_changelog_has_this_version_and_dates():
    """Versions descend, and each but the unreleased one has a date."""
    headings = re.findall(r"^## (.*)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    released = headings[headings[0] == "Unreleased" :]
    assert released[0].startswith(f"{fastbackprop.__version__} - ")
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(found), released
    versions = [tuple(map(int, version.groups()[:3])) for version in found]
    assert versions == sorted(versions, reverse=True)
    citation = text_of(ROOT / "CITATION.cff")
    version, date = released[0].split(" - ")
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation


def test_the_readme_is_one_screen():
    assert len(text_of(ROOT / "README.md").splitlines()) < 120


def test_the_tested_versions_are_the_same_everywhere():
    pyproject = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    rows = re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \|$", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE
    )
    tested = {name.lower().replace("pytorch", "torch"): (oldest, newest) for name, oldest, newest in rows}
    extras = pyproject["optional-dependencies"]
    for name, requirement in {
        "python": pyproject["requires-python"],
        "numpy": pyproject["dependencies"][0],
        "numba": pyproject["dependencies"][1],
        "scikit-learn": extras["sklearn"][0],
        "torch": extras["torch"][0],
        "dask": extras["dask"][0],
    }.items():
        assert re.search(r">=([\d.]+)", requirement)[1] == tested[name][0], requirement
    assert f"Programming Language :: Python :: {tested['python'][1]}" == pyproject["classifiers"][-3]
    workflow = text_of(ROOT / ".github" / "workflows" / "ci.yml")
    for name in "scikit-learn", "torch", "dask":
        for version in tested[name]:
            assert re.search(rf"{name}=={re.escape(version)}\.", workflow), (name, version)


def test_no_labels_overlap_in_the_picture_of_the_engine():
    pytest.importorskip("matplotlib", reason="see the extra `test`")
    spec = importlib.util.spec_from_file_location("draw_engine", ROOT / "docs" / "draw_engine.py")
    draw_engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_engine)
    figure = draw_engine.picture()
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title) if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 20
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{one!r} overlaps {other!r}"
    assert all(figure.bbox.containsx(x) for _, box in boxes for x in (box.x0, box.x1))
