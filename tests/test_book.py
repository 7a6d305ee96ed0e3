"""The site's own parts: chapters and cards, the generated pages, and a checker that finds what is broken."""

import re
from pathlib import Path

import pytest

from minimal import book, sphinx_extension, systems

site_check = pytest.importorskip("minimal.site_check", reason="the site's checker needs beautifulsoup4")

PAGE = "<html><body><article><h1 id='top'>Title</h1>{}</article></body></html>"


@pytest.fixture
def site(tmp_path):
    """A site of two pages, a picture and a script, in order; `put` changes a page."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "pic.png").write_bytes(b"")
    (tmp_path / "own.js").write_text("")

    def put(name, body):
        (tmp_path / name).write_text(PAGE.format(body))

    put("a.html", "<a href='deep/b.html#there'>b</a><img src='pic.png' alt='Two dots'><script src='own.js'></script>")
    put(
        "deep/b.html",
        "<p id='there'>x</p><a href='../a.html'>a</a><a href='#there'>up</a><a href='https://arxiv.org'>p</a>",
    )
    return tmp_path, put


def test_a_site_in_order_has_no_problems(site):
    assert site_check.problems(site[0], ["a.html", "deep/b.html"]) == []


@pytest.mark.parametrize(
    "body, said",
    [
        ("<a href='deep/c.html'>c</a>", "deep/c.html, which does not exist"),
        ("<a href='deep/b.html#nowhere'>b</a>", "no such anchor"),
        ("<a href='#nowhere'>up</a>", "no such anchor"),
        ("<img src='pic.png'>", "no description"),
        ("<img src='pic.png' alt='_images/pic.png here'>", "no description"),
        ("<img src='gone.png' alt='Two dots'>", "gone.png does not exist"),
        (r"<ul><li>c_1 \sum_i $.</li></ul>", "as it was typed"),
        ("<script src='https://cdn.example/x.js'></script>", "from elsewhere"),
        ("<link rel='stylesheet' href='//fonts.example/x.css'>", "from elsewhere"),
        ("<iframe src='http://video.example'></iframe>", "from elsewhere"),
        ("<img src='pic.png' srcset='https://cdn.example/p.png 2x' alt='Two dots'>", "from elsewhere"),
        ("<video poster='https://cdn.example/p.png'></video>", "from elsewhere"),
        ("<object data='HTTPS://cdn.example/p.svg'></object>", "from elsewhere"),
        ("<svg><image href='//cdn.example/p.png'/></svg>", "from elsewhere"),
        ("<p style='background: url(https://cdn.example/p.png)'>x</p>", "from elsewhere"),
        ("<style>@import 'https://fonts.example/x.css';</style>", "from elsewhere"),
        ("<script>const X_URL = 'https://cdn.example/x.js'</script>", "from elsewhere"),
        ("<script type='module'>import x from 'https://cdn.example/x.js'</script>", "from elsewhere"),
    ],
)
def test_each_fault_is_found_and_named(site, body, said):
    folder, put = site
    put("a.html", body)
    [problem] = site_check.problems(folder)
    assert problem.startswith("a.html: ") and said in problem


def test_formulas_may_stand_in_mathematics_and_in_code(site):
    folder, put = site
    put("a.html", r"<span class='math'>\(\sum_i\)</span><pre>\sum</pre><code><i>\sum</i></code><p>\n and C:\</p>")
    assert site_check.problems(folder) == []


def test_a_missing_page_a_page_without_heading_and_a_foreign_font_are_found(site):
    folder, _ = site
    (folder / "c.html").write_text("<html><body><p>no heading</p></body></html>")
    (folder / "style.css").write_text("@font-face { src: url('https://fonts.example/f.woff'); }")
    found = site_check.problems(folder, ["a.html#top", "a.html#fig-gone", "lost.html"])
    assert [p.split(":")[0] for p in found] == ["a.html", "lost.html", "c.html", "style.css"]
    assert "fig-gone is missing" in found[0]


def test_figures_that_a_notebook_names_are_expected_on_its_page():
    pages = book.expected()
    assert "notebooks/0_start/01_tour.html#fig-0-01-all" in pages and "book/map.html" in pages


# Chapters


def repository(tmp_path, listed, **notebooks):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "chapters.toml").write_text(listed)
    (tmp_path / "notebooks" / "0_x").mkdir(parents=True)
    for name, text in notebooks.items():
        (tmp_path / "notebooks" / "0_x" / f"{name[1:]}.py").write_text(text)
    return tmp_path


CARD = "# %% [markdown]\n# # A title\n#\n" + "".join(f"# | **{row}** | some words |\n" for row in book.CARD)


def test_a_chapter_has_title_card_and_number(tmp_path):
    root = repository(tmp_path, '"0_x/01_a" = []\n"0_x/02_b" = ["0_x/01_a"]\n', _01_a=CARD, _02_b=CARD)
    first, second = book.chapters(root)
    assert (first.title, first.number, second.number, second.needs) == ("A title", "0.1", "0.2", ("0_x/01_a",))
    assert first.card["You need"] == "some words"


@pytest.mark.parametrize(
    "listed, text, said",
    [
        ("", CARD, "differ in 0_x/01_a"),
        ('"0_x/01_a" = []\n"0_x/02_b" = []\n', CARD, "differ in 0_x/02_b"),
        ('"0_x/01_a" = ["0_x/09_z"]\n', CARD, "needs 0_x/09_z, which does not come before"),
        ('"0_x/01_a" = []\n', CARD.replace("You need", "You want"), "card of these rows"),
        ('"0_x/01_a" = []\n', CARD.replace("# # A title", "# A title"), "must open with a heading"),
    ],
)
def test_a_chapter_without_card_or_place_is_refused(tmp_path, listed, text, said):
    with pytest.raises(ValueError, match=said):
        book.chapters(repository(tmp_path, listed, _01_a=text))


def test_our_chapters_are_all_listed_in_an_order_that_can_be_read():
    names = [chapter.name for chapter in book.chapters()]
    assert names[0] == "0_start/01_tour" and len(set(names)) == len(names)


def test_every_paper_that_a_chapter_links_to_is_in_the_bibliography():
    known = set(re.findall(r"eprint = \{(.+?)\}", (book.BOOK / "references.bib").read_text()))
    for chapter in book.chapters():
        linked = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", (book.ROOT / f"notebooks/{chapter.name}.py").read_text()))
        assert linked <= known, f"{chapter.name} links to {sorted(linked - known)}; add them to book/references.bib"


# Generated pages


def test_the_map_has_a_row_for_every_system_and_links_where_it_is_done():
    listed = systems.load()
    table = book.map_table(listed)
    assert table.count("<tr id=") == len(listed)
    for system in listed:
        row = table[table.index(f'<tr id="{system.id}"') :].split("</tr>")[0]
        assert all(number in row for number in system.arxiv)
        assert (f"../source/{system.module}.html" in row) == (system.status == "done")


def test_the_graph_puts_a_chapter_below_what_it_needs():
    card = dict.fromkeys(book.CARD, "")
    a, b, c = (
        book.Chapter(f"0_x/0{i}_{n}", n * 30, card, need) for i, n, need in [(1, "a", ()), (2, "b", ()), (3, "c", ())]
    )
    c = book.Chapter("0_x/03_c", "see & learn", card, ("0_x/01_a", "0_x/02_b"))
    picture = book.graph([a, b, c])
    tops = [float(y) for y in re.findall(r'<rect x="\d+" y="(\d+)"', picture)]
    assert tops[0] == tops[1] < tops[2]
    assert picture.count("<path") == 2 and "see &amp; learn" in picture and "needs 0.1, 0.2" in picture


def test_definitions_are_found_with_their_lines():
    text = "import x\n\n\ndef f():\n    pass\n\n\nclass C:\n    def test_y(self):\n        pass\n"
    assert sphinx_extension.definitions(text) == {"f": 4, "C": 8, "C.test_y": 9}


def test_the_site_serves_its_own_mathematics(tmp_path):
    pytest.importorskip("mathjax")
    sphinx_extension.copy_mathjax(tmp_path)
    assert (tmp_path / "tex-svg.js").stat().st_size > 1_000_000
    assert "Apache License" in (tmp_path / "LICENSE").read_text()


def test_every_part_of_the_book_is_in_the_table_of_contents():
    listed = (Path(book.BOOK) / "_toc.yml").read_text()
    assert all(f"book/{page.stem}" in listed for page in book.BOOK.glob("*.md"))
    assert all(f"book/part_{part}" in listed for part in book.PARTS)
