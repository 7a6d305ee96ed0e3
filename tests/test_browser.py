"""The built site in a real browser: nothing leaves the machine, nothing overflows, axe finds nothing serious.

    make book && pip install -e '.[browser]' && pytest tests/test_browser.py --shots FOLDER

needs an installed Chromium. With `--shots`, every page is also left as a picture: wide, as on a phone, and in the dark.
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minimal.book import SITE

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FORMS = {"wide": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (1280, 900, "dark")}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def pages():
    """All pages that people read; of the source pages one stands for all. index.html only leads to the front page."""
    found = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
    found = [page for page in found if page != "index.html"]
    sources = [page for page in found if page.startswith("source/")]
    return [page for page in found if page not in sources[1:]]


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None or not SITE.is_dir():
        pytest.skip("needs an installed Chromium and a built site: `make book`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("page", pages())
def test_a_page_is_at_home_in_a_browser(page, form, browser, address, request):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    width, height, scheme = FORMS[form]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.add_init_script(f"localStorage.setItem('mode', '{scheme}'); localStorage.setItem('theme', '{scheme}')")
    asked, errors = [], []
    tab = context.new_page()
    tab.on("request", lambda r: asked.append(r.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{address}/{page}")
    tab.wait_for_load_state("load")
    tab.evaluate("window.MathJax?.startup?.promise")
    shots = request.config.getoption("--shots")
    if shots:
        tab.screenshot(path=f"{shots}/{page.replace('/', '_')}.{form}.png", full_page=True)
    found = axe.run(tab).response["violations"]
    serious = [
        f"{v['id']}: {node['html'][:200]} ({node.get('failureSummary', '')[:200]})"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]
    overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    unset = tab.evaluate("document.querySelectorAll('mjx-merror, [data-mjx-error]').length")
    context.close()
    assert not [url for url in asked if not url.startswith((address, "data:"))]
    assert not errors and not unset
    assert overflow <= 0, f"the page is {overflow} pixels wider than the window"
    assert not serious, "\n".join(serious)


def test_the_map_can_be_filtered(browser, address):
    tab = browser.new_page()
    tab.goto(f"{address}/book/map.html")
    shown = "document.querySelectorAll('.map-table tbody tr:not([hidden])').length"
    everything = tab.evaluate(shown)
    tab.select_option("[data-filter=status]", "done")
    done = tab.evaluate(shown)
    tab.fill("[data-filter=text]", "speculative")
    assert everything > done > tab.evaluate(shown) >= 1
    assert tab.inner_text(".map-filters output").startswith(f"{tab.evaluate(shown)} of {everything}")
    tab.close()
