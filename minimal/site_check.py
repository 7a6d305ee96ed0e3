"""Is the built site whole? Pages there, links and anchors good, pictures described, nothing loaded from elsewhere.

`problems(folder, expected)` reads the HTML as a browser would and returns one sentence for each fault.
"""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup

LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
SKIP = ("genindex.html", "search.html")  # made by Sphinx, linked by scripts


def problems(folder: Path, expected: Iterable[str] = ()) -> list[str]:
    """What is wrong with the site in `folder`; `expected` are pages that must be there."""
    pages = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.html")}
    found = [f"{page}: the page is missing" for page in sorted(set(expected) - set(pages))]
    soups = {name: BeautifulSoup(path.read_text(encoding="utf8"), "html.parser") for name, path in pages.items()}
    anchors = {name: {tag.get("id") or tag.get("name") for tag in soup.find_all(True)} for name, soup in soups.items()}
    for name, soup in soups.items():
        if not name.startswith("_static"):
            found += [f"{name}: {fault}" for fault in page_problems(folder, name, soup, anchors)]
    for style in folder.rglob("*.css"):
        text = style.read_text(encoding="utf8", errors="replace")
        if "url(http" in text.replace('"', "").replace("'", "") or "@import" in text and "http" in text:
            found.append(f"{style.relative_to(folder)}: loads something from elsewhere")
    return found


def page_problems(folder: Path, name: str, soup: BeautifulSoup, anchors: dict[str, set[str]]) -> list[str]:
    found = []
    for tag in soup.find_all(True):
        address = tag.get(LOADS.get(tag.name, ""))
        if tag.name == "link" and "canonical" not in tag.get("rel", []):
            address = tag.get("href")
        if address and foreign(address):
            found.append(f"loads {address} from elsewhere")
        elif address and not address.startswith("data:") and not (target(folder, name, address)).is_file():
            found.append(f"{tag.name} {address} does not exist")
    for link in soup.find_all("a", href=True):
        address, anchor = urldefrag(link["href"])
        if foreign(address) or urlsplit(address).scheme:
            continue
        path = target(folder, name, address) if address else folder / name
        if not path.is_file():
            found.append(f"link to {link['href']}, which does not exist")
        elif anchor and path.suffix == ".html":
            page = path.relative_to(folder.resolve() if address else folder).as_posix()
            if unquote(anchor) not in anchors.get(page, set()):
                found.append(f"link to {link['href']}: that page has no such anchor")
    article = soup.find("article") or soup
    for picture in article.find_all("img"):
        words = (picture.get("alt") or "").strip()
        if len(words.split()) < 2 or words.startswith(("../", "_images")):
            found.append(f"the picture {picture.get('src')} has no description (alt text)")
    if name not in SKIP and name != "index.html" and not soup.find("h1"):
        found.append("the page has no heading")
    return found


def foreign(address: str) -> bool:
    return address.startswith(("http:", "https:", "//"))


def target(folder: Path, page: str, address: str) -> Path:
    """The file that an address on `page` means."""
    path = unquote(urlsplit(address).path)
    return ((folder / page).parent / path).resolve() if path else folder / page
