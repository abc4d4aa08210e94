"""A real headless Chromium on a page served here; run as a script, it takes the docs' screenshot.

python tests/web/browser.py docs/images/web_demo.png IMAGE [WORK_DIRS]
"""

import json
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
DRIVER = shutil.which('chromedriver')
WAIT = 60  # seconds, for a busy machine


@contextmanager
def serving(work_dirs, examples=(), **limits):
    """The page on a free port; yields its address and its workbench."""
    from cyclemlp_mm.web import UploadLimits, Workbench, find_examples, find_models
    from cyclemlp_mm.web.page import build_page, launch

    workbench = Workbench(find_models(work_dirs), 'cpu')
    limits = UploadLimits(**limits)
    page = build_page(workbench, limits, examples or find_examples(work_dirs))
    url = launch(page, limits, '127.0.0.1', 0, block=False, names=['my.name'])
    try:
        yield url, workbench
    finally:
        page.close(verbose=False)


@contextmanager
def chromium(size=(1280, 1000)):
    """A browser that reaches this machine only, and keeps a log of what it asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = 'headless=new no-sandbox disable-gpu disable-dev-shm-usage '
    flags += f'disable-background-networking window-size={size[0]},{size[1]}'
    for flag in flags.split():
        options.add_argument(f'--{flag}')
    options.add_argument('--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Visitor:
    """What a person does on the page."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.find('#upload input[type=file]'))

    def find(self, selector):
        """The elements of a CSS selector."""
        return self.driver.find_elements('css selector', selector)

    def wait(self, condition, seconds=WAIT):
        """Until it is true; returns its value."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                value = condition()
            except WebDriverException:  # an element that was just replaced
                value = None
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f'nothing came; the page says:\n{self.text("body")[:2000]}')

    def text(self, selector):
        """What is written there."""
        return ' '.join(element.text for element in self.find(selector))

    def upload(self, path):
        """Choose a file, in place of the one before."""
        for clear in self.find('#upload button[aria-label="Clear"]'):
            clear.click()
            self.wait(lambda: self.find('#upload input[type=file]'))
        self.find('#upload input[type=file]')[0].send_keys(str(path))

    def picture(self, key='first'):
        """Address of the drawn picture, '' where there is none."""
        images = self.find(f'#{key}-result img')
        return images[0].get_attribute('src') if images else ''

    def move_slider(self, value):
        """Set the score as dragging does."""
        self.driver.execute_script(
            "const range = document.querySelector('#score input[type=range]');"
            'range.value = arguments[0];'
            "for (const kind of ['input', 'change', 'pointerup', 'release'])"
            '  range.dispatchEvent(new Event(kind, {bubbles: true}));',
            value,
        )

    def choose(self, key, number):
        """Take an entry of a dropdown."""
        self.find(f'#{key} input')[0].click()
        self.wait(lambda: len(self.find('ul[role=listbox] li')) > number)
        options = self.find('ul[role=listbox] li')
        press = "arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
        self.driver.execute_script(press, options[number])


def asked_hosts(driver):
    """Hosts of all requests so far."""
    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    sent = [m['params'] for m in messages if m['method'] == 'Network.requestWillBeSent']
    urls = [urlsplit(params['request']['url']) for params in sent]
    return {url.hostname for url in urls if url.scheme in ('http', 'https', 'ws', 'wss')}


if __name__ == '__main__':
    target, image, *rest = sys.argv[1:]
    with serving(*rest or ['work_dirs']) as (url, _), chromium() as driver:
        visitor = Visitor(driver, url)
        visitor.upload(Path(image).resolve())
        visitor.wait(visitor.picture)
        time.sleep(2)
        driver.save_screenshot(target)
