"""The page in a real browser: it opens, sorts, filters, turns dark, fits a phone, and says nothing on the console.

Chromium and its driver are Debian's ``chromium`` and ``chromium-driver``; set ``WALSH_REQUIRE_BROWSER=1`` where they
must be there.
"""

import os
import shutil

import pytest

from walsh.reporting.build import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture
def browser():
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("WALSH_REQUIRE_BROWSER") == "1":
            pytest.fail("no browser: apt-get install chromium chromium-driver")
        pytest.skip("no chromium with chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def column(driver, table, index):
    script = "return [...arguments[0].tBodies[0].rows].map((r) => r.cells[arguments[1]].textContent)"
    return driver.execute_script(script, table, index)


def test_the_page_works(browser, stored, tmp_path):
    build(stored, tmp_path / "claims.toml")
    size = {"height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1280, **size})
    browser.get((stored / "report.html").as_uri())
    table = browser.find_element("css selector", "#size table")
    heads = [button.text for button in table.find_elements("css selector", "th button")]
    speed = heads.index("tokens/s")
    button = table.find_elements("css selector", "th button")[speed]
    button.click()
    assert column(browser, table, speed) == ["300", "100", "36"]
    button.click()
    assert column(browser, table, speed) == ["36", "100", "300"]
    head = table.find_elements("css selector", "th")[speed]
    assert head.get_attribute("aria-sort") == "ascending"

    colour = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(colour)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) != before

    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, **size})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.get_log("browser") == []


def test_long_tables_filter(browser, stored, tmp_path):
    from tests.reporting.conftest import make_row, make_run
    from walsh.measure.rows import write_run

    rows = [make_row(f"rope/case{i}", "walsh torch", 1 + i / 10) for i in range(20)]
    write_run(stored / "cpu" / "rows.jsonl", make_run(rows))
    build(stored, tmp_path / "claims.toml")
    browser.get((stored / "report.html").as_uri())
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    field = browser.find_element("css selector", "#rows input[type=search]")
    field.send_keys("case1 torch")
    shown = "return [...document.querySelectorAll('#rows tbody tr')].filter((row) => !row.hidden).length"
    assert browser.execute_script(shown) == 11
    assert browser.get_log("browser") == []
