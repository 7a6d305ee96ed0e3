"""What the site needs of Sphinx: source pages, numbered equations, mathematics served by the site itself.

A Sphinx extension, named in book/_config.yml. It adds a page for every file of the package and every test that the map
of the field points to, and mends what the theme gets wrong for our readers.
"""

import ast
import html
import importlib.util
import shutil
from pathlib import Path

from minimal import systems

ROOT = Path(__file__).resolve().parents[1]


def setup(app):
    app.connect("html-collect-pages", source_pages)
    app.connect("doctree-read", number_equations)
    app.connect("html-page-context", mend, priority=900)
    app.connect("builder-inited", lambda app: copy_mathjax(Path(app.outdir) / "_static" / "mathjax"))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def number_equations(app, doctree):
    """Sphinx numbers equations that have a label. In a notebook a label would show, so here all others get one."""
    page, domain = app.env.docname, app.env.get_domain("math")
    for i, equation in enumerate(doctree.findall(lambda node: node.tagname == "math_block")):
        if not equation.get("label"):
            equation["label"] = f"{page}:{i}"
            domain.note_equation(page, equation["label"], location=equation)
            equation["number"] = domain.get_equation_number_for(equation["label"])
            equation["docname"], equation["ids"] = page, [f"equation-{equation['number']}"]


def mend(app, page, template, context, doctree):
    """What the theme and the bibliography get wrong for our readers."""
    # Cells run in the reader's own Jupyter; this script would run them on another machine.
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()]
    # Screen readers expect list items in a list, and the entries of a bibliography have a role of their own.
    context["body"] = context.get("body", "").replace('role="list" class="citation-list"', 'class="citation-list"')


def source_pages(app):
    """An index, and a page for every file of the package and every test that the map names: source/x.py.html."""
    named = {s.test.partition("::")[0] for s in systems.load() if s.status == "done"}
    files = [*sorted((ROOT / "minimal").rglob("*.py")), *sorted(ROOT / name for name in named)]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    items = "".join(f'<li><a href="{name}.html"><code>{name}</code></a></li>' for name in names)
    yield "source/index", {"title": "Source files", "body": f"<h1>Source files</h1><ul>{items}</ul>"}, "page.html"
    for file in files:
        path, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf8")
        code = app.builder.highlighter.highlight_block(text, "python")
        before, _, body = code.partition("<pre>")
        lines = body.split("\n")
        for name, line in definitions(text).items():
            lines[line - 1] = f'<span id="{name}"></span>' + lines[line - 1]
        title = f"<h1><code>{html.escape(path)}</code></h1>"
        source = "\n".join(lines)
        yield f"source/{path}", {"title": path, "body": f"{title}{before}<pre tabindex='0'>{source}"}, "page.html"


def definitions(text: str) -> dict[str, int]:
    """Names of functions and classes, and the lines where they begin: {"test_x": 12, "TestY.test_z": 30}."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node.lineno
            for item in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(item, ast.FunctionDef):
                    found[f"{node.name}.{item.name}"] = item.lineno
    return found


def copy_mathjax(to: Path) -> None:
    """MathJax as one file, from the package that ships it (`pip install 'minimal[book]'`)."""
    package = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax"
    to.mkdir(parents=True, exist_ok=True)
    for name in ("es5/tex-svg.js", "LICENSE"):
        shutil.copy(package / name, to / Path(name).name)
