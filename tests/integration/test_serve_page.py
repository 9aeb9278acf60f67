"""The page of `icdsel serve` in headless Chromium: from an image to answers; faults, keys, narrow windows."""

import asyncio
import base64
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_chooser import FakeChooser, candidates_in
from made_up import EVIL
from PIL import Image
from serving import Running, proxy, running_with

pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
from browser import CONTRAST, IN_BROWSER, chromium, emulate
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from icdsel.serve.errors import ApiError
from icdsel.serve.opening import Wanted, open_service
from icdsel.serve.upstream import Reply, Turn
from icdsel.settings.loading import settings_from

pytestmark = IN_BROWSER
KEY = "a-key-of-some-length"
WIDTHS = (360, 1280)


class Upstream:
    """Answers by the number of images in the prompt.

    Attributes:
        says: The answer, or the error, for a prompt with so many images.
        go: Prompts with demonstrations wait for it.
        asked: The bodies of all requests.
        known: The names of its models.
    """

    name = "made up"

    def __init__(self) -> None:
        self.says: Callable[[int], str | ApiError] = lambda images: "A dog." if images == 1 else "a cat"
        self.go = threading.Event()
        self.go.set()
        self.asked: list[Mapping[str, Any]] = []
        self.known: list[str] = ["made-up"]

    async def chat(self, turn: Turn) -> Reply:
        self.asked.append(turn.body)
        images = len(images_of(turn.body))
        while images > 1 and not self.go.is_set():
            await asyncio.sleep(0.01)
        answer = self.says(images)
        if isinstance(answer, ApiError):
            raise answer
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return Reply(200, json.dumps({"choices": [choice]}).encode())

    async def models(self, ends: float) -> Reply:
        if not self.known:
            raise ApiError(502, "no connection to the model's server", "upstream_unreachable")
        return Reply(200, json.dumps({"data": [{"id": name} for name in self.known]}).encode())

    async def close(self) -> None:
        self.go.set()


def images_of(body: Mapping[str, Any]) -> list[bytes]:
    """The images of a prompt, in order."""
    parts = [part for turn in body["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def running(upstream, tmp_path) -> Iterator[Running]:
    with proxy(tmp_path, upstream) as made:
        yield made


def load(driver: Any, url: str, width: int = 1280, scheme: str = "light") -> None:
    emulate(driver, width, scheme)
    driver.get(url)
    driver.execute_script("sessionStorage.clear()")
    driver.get(url)
    driver.get_log("browser")


def until(driver: Any, script: str, *more: Any) -> Any:
    return WebDriverWait(driver, 20, 0.05).until(lambda own: own.execute_script(script, *more))


def ready(driver: Any) -> None:
    until(driver, "return document.querySelector('[name=selector]') && document.querySelector('.example')")


def one(driver: Any, css: str) -> Any:
    return driver.find_element(By.CSS_SELECTOR, css)


def texts(driver: Any, css: str) -> list[str]:
    return [own.text for own in driver.find_elements(By.CSS_SELECTOR, css)]


def give(driver: Any, path: Path) -> None:
    """Chooses a file, and waits until the page has read it."""
    driver.execute_script("document.getElementById('picture-note').textContent = ''")
    one(driver, "#file").send_keys(str(path))
    until(driver, "return document.getElementById('picture-note').textContent")


def photo(folder: Path, size: tuple[int, int] = (64, 48), orientation: int | None = None) -> Path:
    """A JPEG that is red on the left and blue on the right."""
    picture = Image.new("RGB", size, (20, 30, 200))
    picture.paste((200, 30, 20), (0, 0, size[0] // 2, size[1]))
    path, more = folder / "photo.jpg", {}
    if orientation is not None:
        more["exif"] = Image.Exif()
        more["exif"][0x0112], more["exif"][0x010E] = orientation, "a secret place"
    picture.save(path, **more)
    return path


def answered(driver: Any, count: int = 3) -> list[str]:
    """The answers of all cards, when there are so many."""
    until(driver, "return document.querySelectorAll('.reply').length === arguments[0]", count)
    return texts(driver, ".reply strong")


def overflowing(driver: Any) -> list[str]:
    return driver.execute_script(
        """return [...document.querySelectorAll('body *')].filter((e) => !e.closest('#example-list, .skip, .unseen')
           && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 120))"""
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_from_an_image_and_a_question_to_icds_and_answers(driver, running, upstream, tmp_path, width):
    load(driver, running.url, width)
    ready(driver)
    give(driver, photo(tmp_path))
    assert one(driver, "#preview").is_displayed()
    one(driver, "#question").send_keys("Which animal?", Keys.ENTER)
    assert answered(driver) == ["a cat", "a cat", "A dog."]
    assert texts(driver, ".card h3") == ["policy", "random", "zero-shot"]
    icds = driver.find_elements(By.CSS_SELECTOR, "[data-selector=policy] .icd")
    asked = next(body for body in upstream.asked if len(images_of(body)) == 3)
    prompt = json.dumps(asked)
    assert len(icds) == 2
    for icd in icds:  # what is shown is what was sent
        question, answer = (icd.find_element(By.CSS_SELECTOR, css).text for css in (".asks", ".answer"))
        assert question in prompt and answer in prompt
    until(driver, "return [...document.querySelectorAll('.icd img')].every((image) => image.naturalWidth === 16)")
    assert "%" in icds[0].find_element(By.CSS_SELECTOR, ".score").text
    assert one(driver, "[data-selector=zero-shot] .shown").text.startswith("Nothing is shown")
    assert one(driver, "#asked-question").text == "Which animal?"
    assert asked["model"] == "made-up" and images_of(asked)[-1] == (tmp_path / "photo.jpg").read_bytes()
    assert overflowing(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.get_log("browser") == []


def test_answers_that_agree_have_the_same_sign(driver, running, upstream):
    upstream.says = lambda images: "  A  Cat. " if images == 1 else "a cat"
    load(driver, running.url)
    ready(driver)
    one(driver, ".example").click()
    answered(driver)
    assert len(set(texts(driver, ".reply .badge"))) == 1
    assert texts(driver, "#groups .names") == ["policy, random, zero-shot"]
    shared = "return [...document.querySelectorAll('.reply .badge')].map((one) => one.classList.contains('shared'))"
    in_data = "answer 0"
    for answer, names, marked in (("a dog", "zero-shot", False), (in_data, "zero-shot, the data", True)):
        upstream.says = lambda images, answer=answer: answer if images == 1 else "a cat"
        one(driver, "#send").click()
        answered(driver)
        assert texts(driver, "#groups .names") == ["policy, random", names]
        policy, chance, none = texts(driver, ".reply .badge")
        assert policy == chance != none
        assert (none == one(driver, "#known .badge").text) == (answer == in_data)
        assert driver.execute_script(shared) == [True, True, marked]


def test_an_example_is_asked_with_one_click_and_sent_as_it_is(driver, running, upstream, tmp_path):
    load(driver, running.url)
    ready(driver)
    assert len(driver.find_elements(By.CSS_SELECTOR, ".example")) == 6
    driver.find_elements(By.CSS_SELECTOR, ".example")[1].click()
    answered(driver)
    assert one(driver, "#question").get_attribute("value") == "What is 3?"
    assert one(driver, "#known").text.split() == ["Its", "answer", "in", "the", "data:", "A", "answer", "3"]
    assert {images_of(body)[-1] for body in upstream.asked} == {(tmp_path / "3.png").read_bytes()}


def test_each_answer_is_shown_when_it_arrives(driver, running, upstream):
    upstream.go.clear()
    load(driver, running.url)
    ready(driver)
    one(driver, ".example").click()
    assert answered(driver, 1) == ["A dog."]
    assert len(driver.find_elements(By.CSS_SELECTOR, ".said .spinner")) == 2
    assert len(driver.find_elements(By.CSS_SELECTOR, ".icd")) == 4  # the choices are there before
    until(driver, "return document.getElementById('said').textContent === 'zero-shot answers A dog.'")
    assert one(driver, "#said").get_attribute("aria-live") == "polite"
    upstream.go.set()
    assert answered(driver) == ["a cat", "a cat", "A dog."]
    until(driver, "return document.getElementById('said').textContent === 'All answers have arrived.'")


def test_stopping_ends_the_waiting(driver, running, upstream):
    upstream.go.clear()
    load(driver, running.url)
    ready(driver)
    one(driver, ".example").click()
    answered(driver, 1)
    one(driver, "#stop").click()
    until(driver, "return document.querySelectorAll('.said .failed').length === 2")
    assert texts(driver, ".said .failed") == ["Stopped.", "Stopped."]
    assert not one(driver, "#stop").is_displayed()
    upstream.go.set()
    one(driver, "[data-selector=policy] .said button").click()
    assert answered(driver, 2) == ["a cat", "A dog."]


def test_another_question_ends_the_one_before(driver, running, upstream):
    upstream.go.clear()
    load(driver, running.url)
    ready(driver)
    examples = driver.find_elements(By.CSS_SELECTOR, ".example")
    examples[0].click()
    answered(driver, 1)
    examples[1].click()
    until(driver, "return document.getElementById('asked-question').textContent === 'What is 3?'")
    answered(driver, 1)
    upstream.go.set()
    answered(driver)
    until(driver, "return document.getElementById('said').textContent === 'All answers have arrived.'")
    assert texts(driver, "#groups .names") == ["policy, random", "zero-shot"]
    assert driver.find_elements(By.CSS_SELECTOR, ".failed:not(:empty):not([hidden])") == []


def test_errors_of_the_vlm_are_told_in_place_and_can_be_tried_again(driver, running, upstream):
    failure = ApiError(502, f"the model failed {EVIL}", "upstream_error")
    upstream.says = lambda images: "A dog." if images == 1 else failure
    load(driver, running.url)
    ready(driver)
    one(driver, ".example").click()
    answered(driver, 1)
    until(driver, "return document.querySelectorAll('.said .failed').length === 2")
    assert one(driver, "[data-selector=policy] .said .failed").text == f"No answer. The model failed {EVIL}"
    upstream.says = lambda images: "a cat"
    one(driver, "[data-selector=policy] .said button").click()
    assert answered(driver, 2) == ["a cat", "A dog."]
    assert driver.execute_script("return window.hacked") is None


def test_without_the_vlm_choices_are_shown_all_the_same(driver, running, upstream):
    upstream.known, upstream.says = [], lambda images: ApiError(502, "no connection to the model's server", "away")
    load(driver, running.url)
    ready(driver)
    until(driver, "return document.getElementById('trouble').checkVisibility()")
    assert one(driver, "#trouble").text == "There will be no answers: no connection to the model's server"
    one(driver, ".example").click()
    until(driver, "return document.querySelectorAll('.said .failed').length === 3")
    assert len(driver.find_elements(By.CSS_SELECTOR, ".icd")) == 4


def test_a_server_that_is_gone_is_told(driver, upstream, tmp_path):
    with proxy(tmp_path, upstream) as running:
        load(driver, running.url)
        ready(driver)
        one(driver, ".example").click()
        answered(driver)
    gone = "The server cannot be reached. Is icdsel serve still running?"
    driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    driver.find_elements(By.CSS_SELECTOR, ".example")[1].click()
    until(driver, "return document.getElementById('picture-note').textContent === arguments[0]", gone)
    assert one(driver, "#asked-question").text == "What is 0?"  # nothing was asked about another image
    one(driver, "#send").click()
    until(driver, "return document.querySelectorAll('.shown .failed').length === 3")
    assert set(texts(driver, ".shown .failed")) == {gone}


def test_markup_stays_text(driver, upstream, tmp_path):
    examples, colours = candidates_in(tmp_path, 20)
    evil = [replace(own, question=f"{own.question} {EVIL}", answer=EVIL) for own in examples]
    upstream.says, upstream.known = lambda images: EVIL, [EVIL, "another"]
    with proxy(tmp_path, upstream, chooser=FakeChooser(evil, colours)) as running:
        load(driver, running.url, 360)
        ready(driver)
        give(driver, photo(tmp_path))
        driver.execute_script("document.getElementById('question').value = arguments[0]", f"Q {EVIL}")
        one(driver, "#send").click()
        shown = " ".join(EVIL.split())
        assert [" ".join(text.split()) for text in answered(driver)] == [shown] * 3
        assert shown in one(driver, ".icd .answer").text and shown in one(driver, "#asked-question").text
        assert driver.execute_script("return window.hacked") is None
        assert driver.find_elements(By.CSS_SELECTOR, "main script, img[onerror], img[src=x]") == []
        assert overflowing(driver) == []
        assert driver.get_log("browser") == []  # the policy of the page had nothing to refuse


def test_the_key_is_asked_for_once_and_kept_in_this_tab_only(driver, upstream, tmp_path):
    with proxy(tmp_path, upstream, key=KEY) as running:
        load(driver, running.url)
        until(driver, "return document.getElementById('key-dialog').open")
        one(driver, "#key").send_keys("a-wrong-key-is-this", Keys.ENTER)
        until(driver, "return document.getElementById('key-wrong').checkVisibility()")
        one(driver, "#key").send_keys(KEY, Keys.ENTER)
        ready(driver)
        assert not driver.execute_script("return document.getElementById('key-dialog').open")
        one(driver, ".example").click()
        assert len(answered(driver)) == 3
        until(driver, "return [...document.querySelectorAll('.icd img')].every((image) => image.naturalWidth === 16)")
        kept = "return [Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href]"
        assert driver.execute_script(kept) == [[KEY], [], "", f"{running.url}/"]
        driver.get(running.url)
        ready(driver)
        assert not driver.execute_script("return document.getElementById('key-dialog').open")


def test_the_key_can_be_given_later(driver, upstream, tmp_path):
    with proxy(tmp_path, upstream, key=KEY) as running:
        load(driver, running.url)
        until(driver, "return document.getElementById('key-dialog').open")
        one(driver, "#key-cancel").click()
        until(driver, "return document.getElementById('enter-key').checkVisibility()")
        assert one(driver, "#trouble").text == "A key is needed."
        one(driver, "#enter-key").click()
        one(driver, "#key").send_keys(KEY, Keys.ENTER)
        ready(driver)


@pytest.mark.parametrize(
    ("size", "orientation", "sent"),
    [
        ((64, 48), None, (64, 48)),
        ((64, 48), 6, (48, 64)),
        ((3000, 1500), None, (1280, 640)),
        ((3000, 1500), 8, (640, 1280)),
    ],
)
def test_photos_are_shrunk_and_upright_without_their_metadata(
    driver, running, upstream, tmp_path, size, orientation, sent
):
    load(driver, running.url)
    ready(driver)
    give(driver, photo(tmp_path, size, orientation))
    one(driver, "#question").send_keys("What?", Keys.ENTER)
    answered(driver)
    content = images_of(upstream.asked[0])[-1]
    with Image.open(BytesIO(content)) as picture:
        assert picture.size == sent
        assert not picture.getexif()
        middle = picture.convert("RGB")
        # 6 turns clockwise: the left is then at the top; 8 the other way round
        first = {None: (4, sent[1] // 2), 6: (sent[0] // 2, 4), 8: (sent[0] // 2, sent[1] - 4)}[orientation]
        red, _, blue = middle.getpixel(first)
        assert red > 150 > 100 > blue
    assert b"secret place" not in content


GIVEN = """
const [how, kind] = arguments;
const data = new DataTransfer();
data.items.add(new File([Uint8Array.from(atob(arguments[2]), (c) => c.charCodeAt(0))], 'x', { type: kind }));
const event = how === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
  : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
return !document.body.dispatchEvent(event);
"""


def test_a_phone_offers_its_camera(driver, running):
    load(driver, running.url, 360)
    assert not one(driver, ".photo").is_displayed()
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        until(driver, "return document.querySelector('.photo').checkVisibility()")
        assert one(driver, "#camera").get_attribute("capture") == "environment"
    finally:
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_are_dropped_and_pasted(driver, running, tmp_path, how):
    load(driver, running.url)
    ready(driver)
    content = base64.b64encode(photo(tmp_path).read_bytes()).decode()
    assert driver.execute_script(GIVEN, how, "image/jpeg", content)  # the browser does not open it itself
    until(driver, "return document.getElementById('preview').naturalWidth === 64")
    assert one(driver, "#picture-note").text == "64 × 48 pixels"
    driver.execute_script(GIVEN, how, "image/png", base64.b64encode(b"no image").decode())
    until(driver, "return document.getElementById('picture-note').className.includes('failed')")
    assert one(driver, "#picture-note").text.startswith("Your browser cannot read this file")


def test_what_is_missing_is_told(driver, running, upstream, tmp_path):
    load(driver, running.url)
    ready(driver)
    one(driver, "#send").click()
    assert one(driver, "#missing").text == "Choose an image first."
    give(driver, photo(tmp_path))
    one(driver, "#send").click()
    assert one(driver, "#missing").text == "Type a question first."
    assert driver.switch_to.active_element == one(driver, "#question")
    one(driver, "#question").send_keys("What?")
    for box in driver.find_elements(By.CSS_SELECTOR, "[name=selector]"):
        box.click()
    one(driver, "#send").click()
    assert one(driver, "#missing").text == "Tick a selector first."
    assert upstream.asked == []


def test_the_number_of_shots_and_the_model_are_sent(driver, running, upstream):
    upstream.known = ["first", "second"]
    load(driver, running.url)
    ready(driver)
    until(driver, "return document.getElementById('model-field').checkVisibility()")
    one(driver, "#model option:last-child").click()
    one(driver, "[name=shots][value='4']").send_keys(Keys.SPACE)
    one(driver, ".example").click()
    answered(driver)
    assert sorted(len(images_of(body)) for body in upstream.asked) == [1, 5, 5]
    assert {body["model"] for body in upstream.asked} == {"second"}


def test_everything_is_reached_by_keyboard(driver, running):
    load(driver, running.url)
    ready(driver)
    seen = []
    for _ in range(30):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        at = driver.switch_to.active_element
        name = at.get_attribute("id") or at.get_attribute("name") or at.get_attribute("class")
        if name not in seen:
            seen.append(name)
        frame = "const e = arguments[0]; const f = [e, e.closest('.drop, .photo label, .choice'), "
        frame += "e.parentElement.querySelector('label')].filter(Boolean);"
        frame += "return f.some((own) => getComputedStyle(own).outlineStyle === 'solid')"
        assert driver.execute_script(frame, at), name  # the focus is seen
        if name == "send":
            break
    assert seen[:1] == ["skip"] and seen[-5:] == ["file", "question", "shots", "selector", "send"]
    unnamed = """return [...document.querySelectorAll('input, select, button, textarea')].filter((e) =>
        !e.labels?.length && !e.textContent.trim() && !e.hasAttribute('aria-label')
        && !e.hasAttribute('aria-labelledby')).map((e) => e.outerHTML)"""
    assert driver.execute_script(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(driver, running, upstream, scheme):
    upstream.says = lambda images: "A dog." if images == 1 else ApiError(502, "the model failed", "x")
    load(driver, running.url, scheme=scheme)
    ready(driver)
    one(driver, ".example").click()
    until(driver, "return document.querySelectorAll('.said .failed').length === 2")
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ("255" in ground) == (scheme == "light")
    assert driver.execute_script(CONTRAST) == []


def copied(driver: Any, running: Running, button: int) -> str:
    """What a button of the policy's card puts into the clipboard."""
    allowed = {"origin": running.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    driver.execute_cdp_cmd("Browser.grantPermissions", allowed)
    own = driver.find_elements(By.CSS_SELECTOR, "[data-selector=policy] .buttons button")[button]
    own.click()
    until(driver, "return arguments[0].textContent === 'Copied'", own)
    return driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")


def test_prompts_and_commands_are_copied(driver, upstream, tmp_path):
    with proxy(tmp_path, upstream, key=KEY) as running:
        load(driver, running.url)
        until(driver, "return document.getElementById('key-dialog').open")
        one(driver, "#key").send_keys(KEY, Keys.ENTER)
        ready(driver)
        give(driver, photo(tmp_path, (800, 800)))
        one(driver, "#question").send_keys('It\'s "what" $HOME?', Keys.ENTER)
        answered(driver)
        sent = next(body for body in upstream.asked if len(images_of(body)) == 3)
        assert json.loads(copied(driver, running, 0)) == sent["messages"]
        command = copied(driver, running, 1)
        assert KEY not in command
        before = len(upstream.asked)
        if shutil.which("curl"):
            environment = {"PATH": "/usr/bin:/bin", "ICDSEL_SERVE_API_KEY": KEY}
            words = ["bash", "-c", command]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=True)
            assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "a cat"
            assert upstream.asked[before:] == [sent]


def test_text_that_cannot_be_copied_is_shown(driver, running):
    load(driver, running.url)
    ready(driver)
    driver.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    one(driver, ".example").click()
    answered(driver)
    one(driver, "[data-selector=policy] .buttons button:nth-child(2)").click()
    until(driver, "return document.getElementById('text-dialog').open")
    assert one(driver, "#text").get_attribute("value").startswith(f"curl '{running.url}/v1/chat/completions'")
    one(driver, "#text-close").click()


def test_with_a_real_bundle_and_the_bundled_vlm(driver, bundled):
    settings = settings_from({"vlm": {"model": "tiny-vlm"}})
    with running_with(open_service(Wanted(settings, str(bundled.folder)))) as running:
        load(driver, running.url)
        ready(driver)
        default = "return [...document.querySelectorAll('[name=selector]:checked')].map((own) => own.value)"
        assert driver.execute_script(default) == ["policy", "nearest-both", "random", "zero-shot"]
        assert one(driver, "[name=shots]:checked").get_attribute("value") == "auto"
        one(driver, "#more summary").click()
        one(driver, "[name=selector][value=k-dpp]").click()
        one(driver, ".example").click()
        assert all(answered(driver, 5))
        counts = {
            own.get_attribute("data-selector"): len(own.find_elements(By.CSS_SELECTOR, ".icd"))
            for own in driver.find_elements(By.CSS_SELECTOR, ".card")
        }
        number = max(1, counts["policy"])
        assert counts == {
            "policy": counts["policy"], "nearest-both": number, "random": number, "zero-shot": 0, "k-dpp": number
        }  # fmt: skip
        one(driver, "[name=shots][value='3']").send_keys(Keys.SPACE)
        one(driver, "#send").click()
        answered(driver, 5)
        until(driver, "return document.querySelectorAll('[data-selector=policy] .icd').length === 3")
        assert driver.get_log("browser") == []
