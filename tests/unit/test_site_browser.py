"""The page of results in a real browser, without a window: Chromium, wide and as a phone."""

import shutil
from urllib.parse import unquote, urlparse

import pages
import pytest
import rendering
from playwright.sync_api import expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MARKS = "#chart-quality .mark-symbol path"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; install one: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Its sandbox cannot run as root, as in a container.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    plan = rendering.plan_of(rendering.build(root, pages.settings())[0])
    return pages.write(plan, pages.shade()).as_uri()


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


@pytest.fixture
def page(browser, address, size):
    """The page once all is drawn; what it logs or fetches fails the test."""
    width, height = SIZES[size]
    phone = size == "phone"
    made = browser.new_page(
        viewport={"width": width, "height": height}, is_mobile=phone, has_touch=phone
    )
    wrong = []
    made.on("console", lambda message: wrong.append(message.text))
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("request", lambda request: wrong.append(request.url))
    made.goto(address)
    made.wait_for_selector("body[data-ready]", timeout=120_000)
    made.set_default_timeout(60_000)
    yield made
    made.close()
    assert [each for each in wrong if each != address and not each.startswith("data:")] == []


def fits(page):
    """Whether nothing is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_fits_and_every_chart_is_drawn(page):
    assert fits(page)
    # Three methods at four budgets.
    expect(page.locator(MARKS)).to_have_count(12)
    for chart in ("memory", "speed", "signals", "slots", "scorer"):
        expect(page.locator(f"#chart-{chart} svg")).to_be_visible()
    for details in page.locator("section details").all():
        details.locator("summary").click()
    assert fits(page)


def test_filters_choose_what_is_drawn(page):
    title = page.locator("#chart-quality .role-title-text text")
    expect(title).to_have_text("score")
    page.select_option("#metric-quality", "nll")
    expect(title).to_have_text("NLL of the answer (nats a token)")
    page.get_by_role("button", name="H2O", exact=True).click()
    expect(page.locator(MARKS)).to_have_count(8)
    page.select_option("#over", "length")
    # The budget that is measured at most lengths comes first.
    expect(page.locator("#at")).to_have_value("20p")
    # The full cache has points now, too, at three lengths.
    expect(page.locator(MARKS)).to_have_count(9)
    expect(page.locator("#x-quality")).to_have_text("prompt (tokens)")
    page.select_option("#task", "perplexity")
    # Nothing is decoded there, so that the first of what there is takes its place.
    expect(page.locator("#chart-speed .role-title-text text")).to_have_text("prefill (s)")


def test_a_model_without_a_calibration_says_so(page):
    page.select_option("#model", "tiny_b")
    expect(page.locator("#empty-heads")).to_be_visible()
    expect(page.locator(MARKS)).to_have_count(4)
    page.select_option("#model", "tiny_a")
    expect(page.locator("#chart-signals svg")).to_be_visible()


@pytest.mark.parametrize("size", ["desktop"])
def test_a_point_tells_its_interval_and_leads_to_its_record(page):
    page.locator(MARKS).first.hover()
    tip = page.locator("#vg-tooltip-element")
    expect(tip).to_contain_text("95% interval")
    expect(tip).not_to_contain_text("undefined")
    with page.context.expect_page() as opened:
        page.locator(MARKS).first.click()
    assert "/results/cells/tiny_a/niah_single/L1000/" in opened.value.url


def test_each_point_of_the_table_leads_to_its_record(page):
    page.locator("#section-quality summary").click()
    rows = page.locator("#table-quality tbody tr")
    expect(rows).to_have_count(13)
    for address in page.locator("#table-quality a").evaluate_all("all => all.map(a => a.href)"):
        with open(unquote(urlparse(address).path), encoding="utf-8") as record:
            assert '"schema": 1' in record.read()


def test_the_text_is_shaded_by_method_and_head(page):
    def kept():
        evicted = page.locator("#text span").evaluate_all(
            "all => all.map(span => span.classList.contains('evicted'))"
        )
        return [i for i, gone in enumerate(evicted) if not gone]

    assert page.locator("#text").inner_text() == "".join(pages.TOKENS)
    assert kept() == [7, 9]
    page.select_option("#head", "0")
    assert kept() == [7]
    page.locator("#text span").nth(7).click()
    expect(page.locator("#token")).to_contain_text("kept by 2 of 2 heads")
    page.get_by_role("button", name="H2O 50%").click()
    assert kept() == [0, 1, 2, 3, 4]
    expect(page.locator("#text .marked")).to_have_text(" 4711")
