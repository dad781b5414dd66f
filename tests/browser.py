"""A headless Chromium, driven over the WebDriver protocol by plain HTTP; tests skip where there is none."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the protocol names elements by
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


class Browser:
    """One window. downloads: the folder that saved files go to."""

    def __init__(self, downloads: Path, width: int = 1280, height: int = 900):
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.driver.stdout if "started successfully on port" in line)
        self.address = "http://127.0.0.1:" + re.search(r"port (\d+)", line)[1]
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     f"--window-size={width},{height}"],
            "prefs": {"download.default_directory": str(downloads)},
        }  # fmt: skip
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"

    def ask(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as problem:
            raise AssertionError(json.load(problem)["value"]["message"]) from None

    def open(self, page: Path) -> None:
        self.ask("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def js(self, script: str, *values: Any) -> Any:
        """The value of `return …` in the page."""
        return self.ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(values)})

    def find(self, selector: str) -> str:
        answer = self.ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return answer[ELEMENT]

    def click(self, selector: str) -> None:
        self.ask("POST", f"{self.session}/element/{self.find(selector)}/click")

    def keys(self, selector: str, text: str) -> None:
        self.ask("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def drag(self, selector: str, *points: tuple[float, float], kind: str = "mouse") -> None:
        """Press at the first of the points, parts (x, y) of an element's box, go to the others, let go. kind: "mouse",
        "touch" or "pen"."""
        left, top, width, height = self.js(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", selector)  # fmt: skip
        moves = [{"type": "pointerMove", "duration": 30, "x": round(left + x * width), "y": round(top + y * height)}
                 for x, y in points]  # fmt: skip
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        source = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self.ask("POST", f"{self.session}/actions", {"actions": [source]})

    def cdp(self, command: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.ask("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": values})

    def resize(self, width: int, height: int) -> None:
        """The size of the page, narrower than a window can be too."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def messages(self) -> list[str]:
        """What was written to the console since the last call."""
        return [entry["message"] for entry in self.ask("POST", f"{self.session}/se/log", {"type": "browser"})]

    def close(self) -> None:
        try:
            self.ask("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait()


@pytest.fixture
def browser(tmp_path):
    """A Browser whose downloads go to tmp_path."""
    window = Browser(tmp_path)
    yield window
    window.close()
