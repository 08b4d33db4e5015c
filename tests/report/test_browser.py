"""The report in a real browser: no complaints, nothing fetched, mouse and keyboard, narrow screens, hostile text."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.report import write_report
from moe_probe.testing import planted_results, planted_routing, planted_trace

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

EVIL = "</script></style><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
BROWSER = shutil.which("chromium") or "/usr/bin/chromium"
DRIVER = shutil.which("chromedriver") or "/usr/bin/chromedriver"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the report of a run with features whose topics, tokens, labels and document names are markup."""
    root = tmp_path_factory.mktemp("hostile")
    settings: dict[str, Any] = {"topics": 9, "documents_per_topic": 2, "tokens": 12, "n_layers": 2, "num_experts": 8}
    routing = planted_routing(**settings)
    manifest = planted_trace(root / "plain", planted=(), **settings).manifest
    evil = manifest.model_copy(update={"model": manifest.model.model_copy(update={"id": EVIL})})
    documents = routing.documents.assign(
        document=[f"{EVIL}{i}" for i in range(len(routing.documents))],
        topic=[f"{EVIL} {t}" for t in routing.documents["topic"]],
    )
    writer = TraceWriter.create(root / "run" / "trace", evil)
    writer.append(
        documents=documents.drop(columns="n_tokens").to_dict("records"),
        experts=routing.experts,
        weights=routing.weights,
        tokens={
            "document": routing.document,
            "position": routing.position,
            "token_id": routing.token_id,
            "token": [EVIL] * len(routing.document),
            "special": routing.position < 0,
        },
    )
    planted_results(writer.seal(), root / "run" / "results", words=(EVIL, "a", " b"))
    write_report(root / "run")
    return root / "run" / "report.html"


@pytest.fixture(scope="module")
def chrome(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if not (Path(BROWSER).exists() and Path(DRIVER).exists()):
        if os.environ.get("CI"):
            pytest.fail("no chromium and chromedriver on this machine")
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        resize(driver, 1280)
        driver.get("about:blank")
        driver.get_log("performance")  # what the browser's own first page asked for
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def resize(chrome: Chrome, width: int) -> None:
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )


def unfold(chrome: Chrome, where: str = "main") -> None:
    chrome.execute_script("for (const f of document.querySelectorAll(`${arguments[0]} details`)) f.open = true", where)


def column(chrome: Chrome, index: int) -> list[str]:
    """Return the cells of a column of the table of verdicts, from top to bottom."""
    return chrome.execute_script(
        "return [...document.querySelectorAll('table.verdicts tbody tr:not(.more)')].map(r => r.cells[arguments[0]].innerText)",
        index,
    )


def test_nothing_is_fetched_and_nothing_complains(chrome: Chrome) -> None:
    asked = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    assert sum(url.startswith("file:") for url in urls) == 1
    assert chrome.get_log("browser") == []


def test_hostile_text_is_text(chrome: Chrome, page: Path) -> None:
    assert chrome.execute_script("return window.pwned === undefined")
    assert chrome.execute_script("return document.querySelectorAll('script').length") == 1
    assert chrome.execute_script("return document.querySelectorAll('img:not([src^=\"data:image/png\"])').length") == 0
    assert "window.pwned = 1" in chrome.execute_script("return document.querySelector('table.verdicts').innerText")
    assert "window.pwned = 1" in chrome.execute_script("return document.querySelector('.points title').textContent")
    assert chrome.execute_script("return document.querySelectorAll('mark').length") > 10
    markdown = page.with_suffix(".md").read_text()
    assert not re.search(r"<(script|/script|/style|img)", markdown) and "window.pwned" in markdown


def test_headers_sort_by_mouse_and_by_keyboard(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def numbers() -> list[float]:
        return [float(re.findall(r"^[\d.]+", text)[0]) for text in column(chrome, 4)]

    buttons = chrome.find_elements(By.CSS_SELECTOR, "table.verdicts th button")
    before = numbers()
    assert len(before) == 9 and before != sorted(before)
    by_topic = (
        "return Object.fromEntries([...document.querySelectorAll('tr.more')].map("
        "r => [r.previousElementSibling.cells[0].innerText, r.innerText]))"
    )
    stories = chrome.execute_script(by_topic)
    buttons[4].click()
    assert numbers() == sorted(before)
    buttons[4].send_keys(Keys.ENTER)
    assert numbers() == sorted(before, reverse=True)
    heads = chrome.find_elements(By.CSS_SELECTOR, "table.verdicts th")
    assert [h.get_attribute("aria-sort") for h in heads].count("descending") == 1
    assert heads[4].get_attribute("aria-sort") == "descending"
    # every story still stands under its own row
    buttons[0].click()
    assert chrome.execute_script(by_topic) == stories and len(stories) == 9


def test_folds_open_by_mouse_and_by_keyboard(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    fold = chrome.find_element(By.CSS_SELECTOR, "tr.more details")
    summary = fold.find_element(By.TAG_NAME, "summary")
    text = fold.find_element(By.TAG_NAME, "p")
    assert not text.is_displayed()
    summary.click()
    assert text.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert not text.is_displayed()
    chrome.find_element(By.CSS_SELECTOR, "[data-folds=open]").click()
    assert chrome.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    chrome.find_element(By.CSS_SELECTOR, "[data-folds=close]").click()
    assert chrome.execute_script("return document.querySelectorAll('details[open]').length") == 0


def test_filter_keeps_rows_with_the_words(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By

    box = chrome.find_element(By.CSS_SELECTOR, "#experts input.filter")
    unfold(chrome, "#experts")
    rows = "return [...document.querySelectorAll('#experts tbody tr')].filter(r => r.checkVisibility()).length"
    assert chrome.execute_script(rows) == 16
    box.send_keys("no such expert")
    assert chrome.execute_script(rows) == 0
    box.clear()
    box.send_keys("topic-1")
    shown = chrome.execute_script(rows)
    status = chrome.execute_script("return arguments[0].closest('.toolbar').innerText", box)
    assert 0 < shown < 16 and f"{shown} of 16 rows" in status


@pytest.mark.parametrize(("mark", "says"), [("#maps .points path", "layer 0, expert"), ("#topics .heat rect", "Lift")])
def test_pointing_at_a_mark_says_what_it_is(chrome: Chrome, mark: str, says: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    unfold(chrome, mark.partition(" ")[0])
    tip = chrome.find_element(By.ID, "tip")
    point = chrome.find_element(By.CSS_SELECTOR, mark)
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(chrome).move_to_element(chrome.find_element(By.TAG_NAME, "nav")).perform()
    assert not tip.is_displayed()
    ActionChains(chrome).move_to_element(point).perform()
    assert tip.is_displayed() and says in tip.text


def test_legend_keeps_one_label(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By

    unfold(chrome, "#maps")
    dimmed = "return document.querySelectorAll('#maps g.dim').length"
    button = chrome.find_element(By.CSS_SELECTOR, "#maps .legend button")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    assert chrome.execute_script(dimmed) == 0
    button.click()
    assert chrome.execute_script(dimmed) > 5 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert chrome.execute_script(dimmed) == 0


def test_controls_have_names(chrome: Chrome) -> None:
    assert (
        chrome.execute_script(
            "return [...document.querySelectorAll('button, summary, a, figure > div, svg[role=img]')].filter(e =>"
            " !(e.textContent.trim() || e.getAttribute('aria-label'))).length"
        )
        == 0
    )
    assert chrome.execute_script("return [...document.images].filter(i => i.alt.length < 40).length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_narrow_screen(chrome: Chrome, scheme: str) -> None:
    resize(chrome, 400)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        unfold(chrome)
        assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth === 400")
        ink, back = chrome.execute_script(
            "const s = getComputedStyle(document.body);"
            "return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g).map(Number))"
        )
        assert (sum(ink) > sum(back)) == (scheme == "dark")
        plate = chrome.execute_script(
            "return getComputedStyle(document.querySelector('.plate')).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (sum(plate) < 200) == (scheme == "dark")  # figures are drawn for both
    finally:
        resize(chrome, 1280)


def test_print_leaves_folds_as_they_are(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By

    seen = "return document.querySelector('tr.more details p').checkVisibility()"
    chrome.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = false")
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not chrome.execute_script(seen)
        chrome.execute_script("document.querySelector('tr.more details').open = true")
        assert chrome.execute_script(seen)
        assert not chrome.find_element(By.TAG_NAME, "nav").is_displayed()
        resize(chrome, 690)  # A4 within its margins
        assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        after = "return getComputedStyle(document.querySelector('th button'), '::after').content"
        assert chrome.execute_script(after) in ('""', "none")
    finally:
        resize(chrome, 1280)
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_violation_of_accessibility(chrome: Chrome, scheme: str) -> None:
    """By axe-core, all of its rules, with all folds open; AXE_JS names another version of it."""
    axe = Path(os.environ.get("AXE_JS") or str(files("axe_core_python") / "axe.min.js"))
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        unfold(chrome)
        chrome.execute_script(axe.read_text(encoding="utf-8"))
        chrome.set_script_timeout(120)
        found = chrome.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[0], e => arguments[0]({error: String(e)}))"
        )
        assert "error" not in found and len(found["passes"]) > 20
        assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in found["violations"]] == []
    finally:
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_terms_are_explained_by_pointer_and_keyboard(chrome: Chrome) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def tip(term: Any) -> str:
        return chrome.execute_script("return getComputedStyle(arguments[0], '::after').content", term)

    term = chrome.find_element(By.CSS_SELECTOR, "#verdicts a.term.mark")
    meaning = term.get_attribute("data-tip")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", term)
    ActionChains(chrome).move_to_element(chrome.find_element(By.TAG_NAME, "h1")).perform()
    assert meaning and meaning not in tip(term)
    ActionChains(chrome).move_to_element(term).perform()
    assert meaning in tip(term)
    chrome.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    assert chrome.execute_script("return getComputedStyle(arguments[0], '::after').display", term) == "none"
    ActionChains(chrome).move_to_element(chrome.find_element(By.TAG_NAME, "nav")).perform()
    chrome.execute_script("arguments[0].focus()", term)
    assert meaning in tip(term)
    # Enter goes to the glossary, which opens
    chrome.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = false")
    term.send_keys(Keys.ENTER)
    place = str(term.get_attribute("aria-describedby"))
    assert chrome.execute_script("return document.getElementById(arguments[0]).checkVisibility()", place)
    assert chrome.find_element(By.ID, place).text == meaning


def test_the_run_opens_again(page: Path) -> None:
    assert Trace.open(page.parent).manifest.model.id == EVIL
