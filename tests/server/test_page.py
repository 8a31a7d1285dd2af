"""The chat page, used in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)", allow_module_level=True)

ANSWER = "Use `print`:\n\n```python\nprint('<b>hi</b>')\n```\n\nThat is **all**. <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1100,760",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person does with the page."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.wait(lambda: self.all("#model option"))

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def wait(self, condition: Callable[[], Any], timeout_s: float = 15) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, timeout_s, 0.05).until(lambda _: condition())

    def ask(self, text: str) -> None:
        self.one("#text").send_keys(text + "\n")

    def answered(self) -> str:
        self.wait(lambda: self.all("#again"))
        return str(self.one(".message.assistant:last-child .body").text)

    def set(self, name: str, value: str) -> None:
        field = self.one(f"[data-setting={name}]")
        field.clear()
        field.send_keys(value)
        self.one("aside h2").click()


@pytest.fixture
def open_page(browser: Any, serve: Callable[..., RunningServer]) -> Callable[..., Page]:
    def start(llm: Any = None, **settings: Any) -> Page:
        server = serve(llm, **settings)
        browser.get(server.url)
        browser.execute_script("localStorage.clear()")
        page = Page(browser, server.url)
        page.server = server  # type: ignore[attr-defined]
        return page

    return start


def last(page: Any) -> Any:
    return page.server.llm.seen[-1].params


def test_an_answer_streams_in_and_its_markup_is_text(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page(FakeAsyncLLM(ANSWER, delay_s=0.002))
    page.ask("How do I print?")
    assert page.answered() == "Use print:\nprint('<b>hi</b>')\nThat is all. <img src=x onerror=alert(1)>"
    assert [c.text for c in page.all(".message code")] == ["print", "print('<b>hi</b>')"]
    assert page.one(".message strong").text == "all"
    assert page.all(".message img") == []
    note = page.one(".note").text
    assert "tokens/s" in note
    assert "of 512 tokens" in note
    assert page.one(".message.user").text == "How do I print?"
    assert page.browser.save_screenshot(str(tmp_path / "page.png"))


def test_regenerating_asks_the_same_again_and_a_second_question_sends_the_conversation(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(FakeAsyncLLM("Paris."))
    page.ask("Capital?")
    page.answered()
    prompts = page.server.llm.seen  # type: ignore[attr-defined]
    page.one("#again").click()
    page.wait(lambda: len(prompts) == 2)
    page.answered()
    assert prompts[0].prompt_token_ids == prompts[1].prompt_token_ids
    assert len(page.all(".message.assistant")) == 1
    page.ask("Sure?")
    page.wait(lambda: len(prompts) == 3)
    page.answered()
    assert bytes(prompts[2].prompt_token_ids).decode() == "[user]Capital?[assistant]Paris.[user]Sure?[assistant]"


def test_stop_ends_the_answer_at_the_server_too(open_page: Callable[..., Page]) -> None:
    page = open_page(FakeAsyncLLM("x" * 400, delay_s=0.05))
    page.ask("Go")
    page.wait(lambda: len(page.one(".message.assistant").text) > 3)
    page.one("#stop").click()
    page.wait(lambda: not page.server.llm.running)  # type: ignore[attr-defined]
    assert 3 < len(page.answered()) < 100
    assert page.one(".note").text.endswith("stopped")


def test_settings_reach_the_server_and_outlive_a_reload(open_page: Callable[..., Page]) -> None:
    page = open_page(FakeAsyncLLM("Hello, world."))
    page.one("#gear").click()
    page.set("temperature", "0.5")
    page.set("max_tokens", "4")
    page.set("top_k", "7")
    page.set("seed", "11")
    page.set("system", "Be brief.")
    page.ask("Hi")
    assert page.answered() == "Hell"
    assert page.one(".note").text.endswith("cut at the token limit")
    assert (last(page).temperature, last(page).max_tokens, last(page).top_k, last(page).seed) == (0.5, 4, 7, 11)
    seen = page.server.llm.seen[-1]  # type: ignore[attr-defined]
    assert bytes(seen.prompt_token_ids).decode().startswith("[system]Be brief.[user]Hi")
    page.browser.refresh()
    assert page.one("[data-setting=temperature]").get_attribute("value") == "0.5"


def test_dark_and_light(open_page: Callable[..., Page]) -> None:
    page = open_page()

    def background() -> str:
        return str(page.browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    first = background()
    page.one("#theme").click()
    assert background() != first
    assert {first, background()} == {"rgb(255, 255, 255)", "rgb(20, 23, 27)"}


def test_a_key_is_asked_for_where_the_server_wants_one(open_page: Callable[..., Page], browser: Any) -> None:
    from selenium.common.exceptions import TimeoutException

    with pytest.raises(TimeoutException):
        open_page(FakeAsyncLLM("Paris."), api_keys=("secret",))
    page = Page.__new__(Page)
    page.browser = browser
    page.wait(lambda: page.all(".message.error"))
    page.set("key", "secret")
    page.wait(lambda: page.all("#model option"))
    page.ask("Hi")
    assert page.answered() == "Paris."


def test_an_error_is_shown_and_can_be_tried_again(open_page: Callable[..., Page]) -> None:
    llm = FakeAsyncLLM("Paris.", queue_limit=0)
    page = open_page(llm)
    page.ask("Hi")
    page.wait(lambda: page.all(".message.error"))
    llm.queue_limit = 10
    page.one("#again").click()
    assert page.answered() == "Paris."


def test_nothing_is_asked_of_another_host_and_nothing_is_complained_about(
    open_page: Callable[..., Page], browser: Any
) -> None:
    import json

    browser.get_log("performance")
    browser.get_log("browser")
    page = open_page(FakeAsyncLLM("Paris."))
    page.ask("Hi")
    page.answered()
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert urls
    assert all(u.startswith((page.server.url, "data:,")) for u in urls), urls  # type: ignore[attr-defined]
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
