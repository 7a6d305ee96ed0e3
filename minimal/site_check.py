"""Is the built site whole? Pages there, links good, pictures described, formulas set, nothing loaded from elsewhere.

`problems(folder, expected)` reads the HTML as a browser would and returns one sentence for each fault.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup

LOADS = ("src", "srcset", "poster", "data")  # attributes by which any element loads a file
FOREIGN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)
FOREIGN_SCRIPT = re.compile(
    r"""(?:from|import|import\(|fetch\(|\.src\s*=|_URL\s*=)\s*["'`](?:https?:)?//""", re.IGNORECASE
)
RAW_FORMULA = re.compile(r"\\[a-zA-Z]{2,}")  # a command of TeX, where a reader should see a sign
VERBATIM = ("pre", "code", "script", "style", "textarea")
SKIP = ("genindex.html", "search.html")  # made by Sphinx, linked by scripts


def problems(folder: Path, expected: Iterable[str] = ()) -> list[str]:
    """What is wrong with the site in `folder`; `expected`: pages, and anchors (page#id), that must be there."""
    folder = folder.resolve()
    pages = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.html")}
    soups = {name: BeautifulSoup(path.read_text(encoding="utf8"), "html.parser") for name, path in pages.items()}
    anchors = {name: {tag.get("id") or tag.get("name") for tag in soup.find_all(True)} for name, soup in soups.items()}
    found = []
    for page, anchor in map(urldefrag, sorted(set(expected))):
        if page not in pages:
            found.append(f"{page}: the page is missing")
        elif anchor and anchor not in anchors[page]:
            found.append(f"{page}: {anchor} is missing")
    for name, soup in soups.items():
        if not name.startswith("_static"):
            found += [f"{name}: {fault}" for fault in page_problems(folder, name, soup, anchors)]
    for style in folder.rglob("*.css"):
        if FOREIGN_STYLE.search(style.read_text(encoding="utf8", errors="replace")):
            found.append(f"{style.relative_to(folder)}: loads something from elsewhere")
    return found


def page_problems(folder: Path, name: str, soup: BeautifulSoup, anchors: dict[str, set[str]]) -> list[str]:
    found = []
    for tag in soup.find_all(True):
        inside = tag.string or "" if tag.name in ("style", "script") else ""
        imports = tag.name == "script" and FOREIGN_SCRIPT.search(inside)
        if imports or FOREIGN_STYLE.search(tag.get("style", "") + inside):
            found.append(f"{tag.name} loads something from elsewhere: {tag.get('style') or inside.strip()[:80]}")
        for address in loaded(tag):
            if foreign(address):
                found.append(f"loads {address} from elsewhere")
            elif not address.startswith(("data:", "#")) and not target(folder, name, address).is_file():
                found.append(f"{tag.name} {address} does not exist")
    for link in soup.find_all("a", href=True):
        address, anchor = urldefrag(link["href"])
        if foreign(address) or urlsplit(address).scheme:
            continue
        path = target(folder, name, address)
        if not path.is_file():
            found.append(f"link to {link['href']}, which does not exist")
        elif anchor and path.suffix == ".html":
            if unquote(anchor) not in anchors.get(path.relative_to(folder).as_posix(), set()):
                found.append(f"link to {link['href']}: that page has no such anchor")
    article = soup.find("article") or soup
    for picture in article.find_all(lambda tag: tag.name == "img" or tag.get("type") == "image"):
        words = (picture.get("alt") or "").strip()
        if len(words.split()) < 2 or words.startswith(("../", "_images")):
            found.append(f"the picture {picture.get('src')} has no description (alt text)")
    for text in article.find_all(string=RAW_FORMULA):
        if not text.find_parent(VERBATIM) and not text.find_parent(class_="math"):
            found.append(f"a formula stands there as it was typed: {text.strip()[:60]}")
    if name not in SKIP and name != "index.html" and not soup.find("h1"):
        found.append("the page has no heading")
    return found


def loaded(tag) -> list[str]:
    """Addresses that a browser fetches for this element; not those of plain links."""
    found = [tag.get(name) for name in LOADS if name != "srcset"]
    found += [choice.split()[0] for choice in tag.get("srcset", "").split(",") if choice.strip()]
    if tag.name in ("image", "use") or tag.name == "link" and "canonical" not in tag.get("rel", []):
        found += [tag.get("href"), tag.get("xlink:href")]
    return [address for address in found if address]


def foreign(address: str) -> bool:
    return address.lower().startswith(("http:", "https:", "//"))


def target(folder: Path, page: str, address: str) -> Path:
    """The file that an address on `page` means."""
    path = unquote(urlsplit(address).path)
    return ((folder / page).parent / path).resolve() if path else folder / page
