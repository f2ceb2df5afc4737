#!/usr/bin/env python3
"""Tests the status page with Chromium: a larder server, a registry, and a slow connection between them.

    python tests/browser/run.py [--larder PROGRAM] [--screenshots FOLDER] [--keep]

Needs root, Linux, Selenium, and Debian's chromium, chromium-driver and docker-registry. The tests run in their own
network, mount and process namespaces, as the client tests do, so nothing can be loaded from other hosts.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
import world  # noqa: E402
from pictures import slim  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import NoAlertPresentException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from servers import Failed, in_namespaces, require, run, wait_until  # noqa: E402

HOME = f"http://127.0.0.1:{world.ADMIN}"
EMPTY = f"http://127.0.0.1:{world.EMPTY_ADMIN}"
IMAGE = f"{HOME}/image?reference=docker.io/library/postgres:17"
PAGES = (
    f"{HOME}/",
    f"{HOME}/images",
    f"{HOME}/images?q=postgres",
    f"{HOME}/images/docker.io/library/postgres",
    IMAGE,
    f"{IMAGE}&platform=linux/amd64",
    f"{IMAGE}&platform=linux/arm64/v8",
    f"{HOME}/image?reference=ghcr.io/team/app:2.4.1",
    f"{HOME}/image?reference=docker.io/library/hostile:1",
    f"{HOME}/jobs",
    f"{EMPTY}/",
)
# Returns the texts whose contrast with their background is below level AA of WCAG 2.2.
PALE = """
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const pale = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!own || !node.checkVisibility() || node.closest(".hidden, .skip, [aria-hidden=true], noscript")) continue;
  const style = getComputedStyle(node);
  const [front, back] = [light(parse(style.color)), light(behind(node))];
  const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  const large = parseFloat(style.fontSize) >= 24;
  if (ratio < (large ? 3 : 4.5)) pale.push(`${ratio.toFixed(2)} ${node.textContent.trim().slice(0, 40)}`);
}
return pale;
"""


class Browser:
    """Chromium, its console messages, and its requests."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            "--lang=en-GB",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.size(1280, 900)

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def size(self, width, height):
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def scheme(self, name):
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url):
        self.driver.get(url)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        found = self.all(selector)
        require(found, f"nothing is {selector} on {self.driver.current_url}")
        return found[0]

    def text(self, selector="body"):
        while True:
            # A live element may have been replaced since it was found.
            with contextlib.suppress(StaleElementReferenceException):
                return self.one(selector).text

    def script(self, text, *arguments):
        return self.driver.execute_script(text, *arguments)

    def press(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self):
        return self.driver.switch_to.active_element

    def click(self, text):
        for link in self.driver.find_elements(By.PARTIAL_LINK_TEXT, text):
            link.click()
            return
        raise Failed(f"there is no link {text!r} on {self.driver.current_url}")

    def wait(self, what, condition, seconds=20):
        wait_until(what, condition, seconds)

    def complaints(self):
        """Console messages since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def asked_for(self):
        """All requested addresses since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found


def an_empty_store(browser, _):
    browser.open(f"{EMPTY}/")
    require("The cache is empty" in browser.text("h2#start-title"), "the page does not show that the cache is empty")
    command = f"docker pull 127.0.0.1:{world.EMPTY_API}/docker.io/library/alpine:3"
    require(command in browser.text(), "the page does not show the first command")
    require("The cache is empty" in (browser.open(f"{EMPTY}/images") or browser.text("main")), "the list is missing")


def by_mouse(browser, _):
    browser.open(f"{HOME}/")
    browser.click("Images")
    browser.click("docker.io/library/postgres")
    browser.click("17")
    require("complete: linux/amd64" in browser.text(), f"the index says {browser.text('.says')!r}")
    browser.click("linux/arm64/v8")
    tab = browser.one(".tabs a[aria-current=page]").text
    require("linux/arm64/v8" in tab, f"the tab is {tab!r}")
    require("of its 5 blobs" in browser.text(".says"), f"it says {browser.text('.says')!r}")
    browser.click("linux/amd64")
    require("docker-entrypoint.sh" in browser.text() and "PG_MAJOR=17" in browser.text(), "the config is not shown")
    browser.one("summary").click()
    require("apt-get install" in browser.text("details[open]"), "the history does not open")
    browser.all("summary")[1].click()
    browser.click("Raw document")
    require('"schemaVersion" : 2' in browser.text(), "the document is not the one that was pushed")


def by_keyboard(browser, _):
    browser.open(f"{HOME}/")
    browser.press(Keys.TAB)
    skip = browser.focused()
    require(skip.text == "Skip to the content" and skip.location["y"] >= 0, "the first tab stop is not a visible skip link")
    browser.press(Keys.ENTER)
    require(browser.focused().get_attribute("id") == "content", "the skip link does not lead to the content")
    browser.one("body").send_keys("/")
    require(browser.focused().get_attribute("id") == "q", "`/` does not lead to the search")
    browser.focused().send_keys("postgres 17", Keys.ENTER)
    browser.wait("the search result is shown", lambda: "q=postgres" in browser.driver.current_url)
    require("1 found" in browser.text("main"), f"the search says {browser.text('main')!r}")
    for _step in range(20):
        browser.press(Keys.TAB)
        if "postgres:17" in browser.focused().text.replace("\n", ""):
            break
    outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle")
    require(outline != "none", "the focused element is not marked")
    browser.press(Keys.ENTER)
    browser.wait("the image page is shown", lambda: "/image?" in browser.driver.current_url)
    require("/" in browser.one(".search kbd").text, "the key is not shown")


def copied(browser, _):
    browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.open(IMAGE)
    button = browser.one(".command .copy")
    button.click()
    browser.wait("the button shows the result", lambda: button.text == "Copied")
    require(browser.text("#announcement") is not None and browser.script(
        "return document.getElementById('announcement').textContent") == "Copied", "the result is not announced to screen readers")
    found = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    require(found == f"docker pull 127.0.0.1:{world.API}/docker.io/library/postgres:17", f"copied is {found!r}")


def a_live_fill(browser, shots):
    browser.open(f"{HOME}/")
    pullers = [threading.Thread(target=world.pull, args=(name,), daemon=True) for name in world.SLOW_ONES]
    for puller in pullers:
        puller.start()
    value = "const bar = document.querySelector('#fills progress[max]'); return bar && bar.value"
    browser.wait("a bar appears by itself", lambda: browser.script(value))
    first = browser.script(value)
    browser.wait("the bar moves by itself", lambda: (browser.script(value) or 0) > first)
    if shots:
        browser.wait("the progress bar is large enough for a screenshot", lambda: (browser.script(value) or 0) > 8 << 20)
        picture(browser, shots / "overview.png", "#as-of")
    browser.one("#live-toggle").click()
    require(browser.text("#live-state") == "paused", "the page does not show that it is paused")
    for puller in pullers:
        puller.join(60)
    world.settle()
    require(browser.script(value), "the page is updated although it is paused")
    browser.one("#live-toggle").click()
    browser.wait("the page is updated again", lambda: "No fill is running" in browser.text("#fills"))


def hostile_names(browser, _):
    browser.complaints()
    base = f"{HOME}/image?reference=docker.io/library/hostile:1"
    browser.open(base)
    tab = browser.all(".tabs a")[1].get_attribute("href")
    by_digest = browser.one("#platforms-title ~ table code").get_attribute("title")
    other = f"{HOME}/image?reference=docker.io/library/hostile@{by_digest}"
    shown = 0
    for url in (base, tab, other, f"{HOME}/images?q=%22%3E{world.HOSTILE.replace('#', '')}", f"{HOME}/images"):
        browser.open(url)
        shown += browser.text().count("<script>document.title='ran'")
        require(not browser.all("main img, main script"), f"there is markup on {url}")
        require("ran" not in browser.driver.title.split(), f"a script ran on {url}")
        with contextlib.suppress(NoAlertPresentException):
            raise Failed(f"an alert on {url}: {browser.driver.switch_to.alert.text}")
    require(shown >= 10, f"the hostile texts are shown only {shown} times")
    require(not (said := browser.complaints()), f"the console says {said}")


def both_schemes(browser, _):
    grounds = {}
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        for url in PAGES:
            browser.open(url)
            browser.script("for (const it of document.querySelectorAll('details')) it.open = true")
            pale = browser.script(PALE)
            require(not pale, f"too pale in {scheme} on {url}: {pale[:5]}")
        grounds[scheme] = browser.script("return getComputedStyle(document.body).backgroundColor")
    browser.scheme("light")
    require(grounds["light"] != grounds["dark"], f"both schemes have the ground {grounds['light']}")


def every_width(browser, _):
    for width in (360, 768, 1280):
        browser.size(width, 900)
        for url in PAGES:
            browser.open(url)
            wide = browser.script("return document.documentElement.scrollWidth")
            require(wide <= width, f"{url} is {wide} wide where there are {width}")
    browser.size(1280, 900)


def without_scripts(browser, _):
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{HOME}/")
        text = browser.text()
        for part in ("Hit ratio", "Egress saved", "docker.io", "76 of 100 left", "reload it"):
            require(part in text, f"without scripts {part!r} is missing")
        require("Pause" not in text, "there is a button that does nothing")
        browser.open(f"{IMAGE}&platform=linux/amd64")
        require("PG_MAJOR=17" in browser.text() and "docker pull" in browser.text(), "the image is not readable")
        require("Copy" not in browser.text(), "there is a button that does nothing")
        browser.click("Images")
        require("docker.io/library/nginx" in browser.text(), "the list is not readable")
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


def landmarks(browser, _):
    for url in PAGES:
        browser.open(url)
        count = {tag: len(browser.all(tag)) for tag in ("h1", "main", "header", "footer")}
        require(set(count.values()) == {1}, f"{url} has {count}")
        require(browser.script("return document.documentElement.lang") == "en", f"{url} has no language")
        nameless = "return [...document.querySelectorAll('a, button, input, meter, progress, nav, section[aria-labelledby]')]"
        nameless += ".filter((it) => !it.closest('[hidden]') && !(it.textContent.trim() || it.ariaLabel || it.labels?.length))"
        nameless += ".map((it) => it.outerHTML.slice(0, 80))"
        require(not (found := browser.script(nameless)), f"without a name on {url}: {found}")
        twice = "const ids = [...document.querySelectorAll('[id]')].map((it) => it.id);"
        twice += "return ids.filter((id, at) => ids.indexOf(id) !== at)"
        require(not (found := browser.script(twice)), f"duplicate ids on {url}: {found}")


def nothing_from_elsewhere(browser, _):
    """Runs after all other checks."""
    asked = [url for url in browser.asked_for() if not url.startswith(("data:", "chrome:", "about:"))]
    foreign = [url for url in asked if not url.startswith((HOME + "/", EMPTY + "/"))]
    require(len(asked) > 100 and not foreign, f"of {len(asked)} requests these went to other hosts: {foreign[:5]}")
    require(not (said := browser.complaints()), f"the console says {said[:5]}")


def a_stopped_server(browser, used):
    browser.open(f"{HOME}/")
    browser.one("#live-toggle")
    used.stop()
    browser.wait("the page shows that the server does not answer", lambda: browser.text("#live-state") == "no answer")
    require("Hit ratio" in browser.text(), "the last values have disappeared")


CHECKS = (
    an_empty_store,
    by_mouse,
    by_keyboard,
    copied,
    a_live_fill,
    hostile_names,
    both_schemes,
    every_width,
    without_scripts,
    landmarks,
    nothing_from_elsewhere,
)


def picture(browser, path, until):
    """Screenshot of a page from its top to the end of an element, in the light scheme."""
    end = f"return document.querySelector('{until}').getBoundingClientRect().bottom + scrollY"
    browser.size(1280, int(browser.script(end)) + 28)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(slim(browser.driver.get_screenshot_as_png()))
    browser.size(1280, 900)


def run_checks(work, binary, shots):
    used = world.build(work, binary)
    browser = Browser(work / "profile")
    passed = failed = 0
    try:
        for check in (*CHECKS, a_stopped_server):
            begun, name = time.monotonic(), check.__name__.replace("_", " ")
            given = used if check is a_stopped_server else shots
            try:
                check(browser, given)
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begun:.1f} s)", flush=True)
            except Exception as error:  # noqa: BLE001: the other checks run after any failure
                failed += 1
                print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
                with contextlib.suppress(Exception):
                    browser.driver.save_screenshot(str(work / f"{check.__name__}.png"))
            if check is nothing_from_elsewhere and shots:
                browser.open(f"{IMAGE}&platform=linux/amd64")
                picture(browser, shots / "image.png", "section:has(#parts-title)")
    finally:
        browser.driver.quit()
    print(f"page: {passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", default=root / "target/debug/larder", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for the screenshots of the documentation")
    parser.add_argument("--keep", action="store_true", help="keep logs, stores and screenshots of failures")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary = options.larder.resolve()
    shots = options.screenshots and options.screenshots.resolve()
    if options.inside:
        run("ip", "link", "set", "lo", "up")
        return run_checks(options.inside, binary, shots)
    missing = [it for it in ("unshare", "ip", "chromium", "chromedriver", "docker-registry") if not shutil.which(it)]
    if missing or os.geteuid() != 0 or not os.access(binary, os.X_OK):
        sys.exit(f"needs root, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
    arguments = ["--larder", binary, *(("--screenshots", shots) if shots else ())]
    return in_namespaces("larder-page-", Path(__file__).resolve(), arguments, options.keep)


if __name__ == "__main__":
    sys.exit(main())
