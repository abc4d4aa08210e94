"""The web page in a real browser, and its server against those that mean harm."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, Visitor, asked_hosts, chromium, serving
from paths import ROOT
from PIL import Image
from toy_models import save_detector, save_segmentor
from toy_runs import run_tool

pytest.importorskip('gradio')
pytest.importorskip('selenium')
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason='no browser on this machine (Debian: apt install chromium chromium-driver)',
)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('work_dirs')
    save_detector(folder / 'demo')
    save_segmentor(folder / 'a_segmentor')
    (folder / 'secret.txt').write_text('what nobody may read')
    return folder


@pytest.fixture(scope='module')
def served(work_dirs, images):
    with serving(work_dirs, [str(images / 'good.png')], megabytes=0.5) as (url, workbench):
        yield url, workbench


@pytest.fixture(scope='module')
def driver():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 10, 3), np.uint8)
    Image.fromarray(coarse).resize((160, 128)).save(folder / 'good.png')
    noise = rng.integers(0, 255, (500, 500, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'large.png')  # 0.75 MB
    (folder / 'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n no image at all')
    return folder


@needs_browser
def test_a_visit(served, driver, images):
    """Upload, result, slider, bad file, good file again, two models; and no word to anyone else."""
    url, workbench = served
    runs = []
    predict = workbench.predict
    workbench.predict = lambda *args: runs.append(args[0]) or predict(*args)
    visitor = Visitor(driver, url)
    assert 'cyclemlp_mm' in visitor.text('h1')

    visitor.upload(images / 'good.png')
    first = visitor.wait(visitor.picture)
    facts = visitor.wait(lambda: visitor.text('#first-facts'))
    assert 'ms on cpu' in facts and '160×128 px' in facts
    assert runs == ['demo: toy']

    # The slider draws other boxes, from the same run of the model: it shows the very same time.
    def number(facts):
        return int(facts.split('·')[2].split()[0])

    visitor.move_slider(0.95)
    visitor.wait(lambda: visitor.picture() not in ('', first))
    visitor.wait(lambda: visitor.text('#first-facts') != facts)
    none_left = visitor.text('#first-facts')
    assert none_left.split('·')[0] == facts.split('·')[0]
    visitor.move_slider(0.05)
    visitor.wait(lambda: number(visitor.text('#first-facts')) > number(none_left))
    assert runs == ['demo: toy']

    visitor.upload(images / 'bad.png')
    visitor.wait(lambda: 'Cannot read this file' in visitor.text('#problem'))
    assert len(visitor.find('#problem [role=alert]')) == 1
    assert visitor.picture() == '' and visitor.find('.toast-body') == []
    assert runs == ['demo: toy']

    visitor.upload(images / 'good.png')
    visitor.wait(visitor.picture)
    assert visitor.text('#problem') == ''

    visitor.choose('second-config', 2)  # none, the detector, the segmentor
    chosen = '#second-checkpoint input'
    values = lambda: [field.get_attribute('value') for field in visitor.find(chosen)]  # noqa: E731
    visitor.wait(lambda: values() == ['epoch_1.pth'])
    visitor.find('#predict')[0].click()
    visitor.wait(lambda: visitor.picture('second'))
    assert visitor.picture('first') != visitor.picture('second')
    facts = visitor.wait(lambda: visitor.text('#second-facts'))
    assert 'sky' in facts or 'road' in facts
    assert runs == ['demo: toy', 'demo: toy', 'demo: toy', 'a_segmentor: toy']
    assert asked_hosts(driver) == {'127.0.0.1'}


@needs_browser
def test_an_example_moves_nothing(served, driver):
    visitor = Visitor(driver, served[0])
    visitor.wait(lambda: 'The model knows 4 classes' in visitor.text('#first-knows'))
    place = visitor.find('#first-result')[0].rect
    visitor.find('#examples .thumbnail-item')[0].click()
    visitor.wait(visitor.picture)
    assert visitor.find('#first-result')[0].rect == place


@needs_browser
def test_the_result_is_that_of_the_last_image(work_dirs, images, driver, tmp_path):
    """Another image is chosen while the first one is predicted."""
    Image.open(images / 'good.png').resize((96, 64)).save(tmp_path / 'small.png')
    examples = [str(images / 'good.png'), str(tmp_path / 'small.png')]
    with serving(work_dirs, examples, megabytes=0.5) as (url, workbench):
        predict = workbench.predict
        workbench.predict = lambda *args: time.sleep(1) or predict(*args)
        visitor = Visitor(driver, url)
        first, second = visitor.wait(lambda: visitor.find('#examples .thumbnail-item'))
        first.click()
        time.sleep(0.3)
        second.click()
        visitor.wait(lambda: '96×64 px' in visitor.text('#first-facts'))
        time.sleep(2)  # nothing comes after it
        assert '96×64 px' in visitor.text('#first-facts')


def get(url):
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(url, body, kind='application/json', **headers):
    return get(urllib.request.Request(url, body, {'Content-Type': kind, **headers}))


PATHS = '/etc/passwd ../../../../etc/passwd ..%2f..%2f..%2fetc%2fpasswd setup.py'
PATHS += ' {work_dirs}/secret.txt {work_dirs}/demo/epoch_1.pth {work_dirs}/demo/toy.py'


@pytest.mark.parametrize('path', PATHS.split())
def test_no_file_of_the_server_is_given_away(served, work_dirs, path):
    path = path.format(work_dirs=work_dirs)
    for route in ('gradio_api/file=', 'file=', 'gradio_api/file/', 'static/', 'assets/'):
        status, body = get(f'{served[0]}{route}{path}')
        assert status >= 400, route
        assert b'root:' not in body and b'nobody may read' not in body


def test_other_sites_cannot_use_the_page(served):
    url = served[0]
    port = url.split(':')[2].strip('/')
    evil = 'evil.example'
    cases = {'Host': {}, 'Origin': {}}
    for name in (f'localhost:{port}', f'[::1]:{port}', 'my.name'):
        cases['Host'][name] = True
    for name in (evil, f'{evil}:{port}', f'127.0.0.1.{evil}', f'localhost.{evil}', '', '[::1'):
        cases['Host'][name] = False
    cases['Origin'][f'http://127.0.0.1:{port}'] = True
    for name in ('null', f'http://{evil}', 'http://127.0.0.1:1'):
        cases['Origin'][name] = False
    headers = [({}, True), ({'Host': evil, 'Origin': f'http://{evil}'}, False)]
    headers += [({key: n}, allowed) for key in cases for n, allowed in cases[key].items()]
    for given, allowed in headers:
        for path, body in (('', None), ('config', None), ('gradio_api/call/predict', b'{}')):
            status, said = post(url + path, body, **given)
            assert (status != 403) == allowed, (given, path, said)


def test_no_request_goes_around_the_queue(served, images):
    """Six at once are predicted one after the other, and decoded one after the other."""
    url, workbench = served
    inputs = inputs_for(url, images / 'good.png')
    content = json.dumps({'data': inputs}).encode()
    for route in ('run', 'api'):
        status, said = post(f'{url}gradio_api/{route}/predict', content)
        assert status == 404 and b'join the queue' in said
    from cyclemlp_mm.web import page

    running, most = [], []
    read, predict = page.read_upload, workbench.predict

    def slowly(function, *args):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        try:
            return function(*args)
        finally:
            running.pop()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setattr(page, 'read_upload', lambda *args: slowly(read, *args))
        patch.setattr(workbench, 'predict', lambda *args: slowly(predict, *args))
        said = list(pool.map(lambda _: call(url, inputs), range(6)))
    assert all('gradio_api/file' in answer for answer in said)
    assert len(most) == 12 and max(most) == 1


def test_errors_name_no_folder_of_the_server(served, work_dirs, images):
    url, _ = served
    inputs = inputs_for(url, images / 'good.png')
    checkpoint = work_dirs / 'demo' / 'epoch_1.pth'
    whole = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(whole[:-50])
        said = call(url, inputs)
    finally:
        checkpoint.write_bytes(whole)
    assert 'epoch_1.pth' in said and str(work_dirs) not in said and '/tmp' not in said


def upload(url, data, name):
    """What Gradio's own page sends; status and answer."""
    edge = b'edge-of-a-part'
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n'.encode()
    body = b'--%b\r\n%bContent-Type: image/png\r\n\r\n%b\r\n--%b--\r\n' % (edge, head, data, edge)
    return post(f'{url}gradio_api/upload', body, f'multipart/form-data; boundary={edge.decode()}')


def inputs_for(url, file):
    """Uploads an image; returns what the page's function takes for it and the first model."""
    _, body = upload(url, file.read_bytes(), file.name)
    image = {'path': json.loads(body)[0], 'meta': {'_type': 'gradio.FileData'}}
    return [image, 0.3, 'demo: toy', 'epoch_1.pth', 'none', 'none', ['labels', 'scores']]


def test_uploads(served, images):
    """The server itself refuses large files, and a name that climbs stays in its folder."""
    assert upload(served[0], (images / 'large.png').read_bytes(), 'large.png')[0] == 413
    status, body = upload(served[0], (images / 'good.png').read_bytes(), '../../../climbed.png')
    assert status == 200
    [path] = json.loads(body)
    assert '..' not in path and path.endswith('climbed.png') and '/gradio/' in path


def test_only_uploads_and_known_models_are_used(served, work_dirs, images):
    """The call that the page makes, with other paths and names."""
    url, _ = served
    inputs = inputs_for(url, images / 'good.png')
    for path in ('/etc/passwd', f'{work_dirs}/secret.txt', '../../etc/passwd'):
        said = call(url, [dict(inputs[0], path=path), *inputs[1:]])
        assert 'error' in said and 'root:' not in said and 'nobody may read' not in said
    for model in (['/outside/evil.py', 'epoch_1.pth'], ['demo: toy', '../../evil.pth']):
        said = call(url, [*inputs[:2], *model, *inputs[4:]])
        assert 'error' in said and 'gradio_api/file' not in said
    assert 'gradio_api/file' in call(url, inputs)


def test_what_goes_wrong_is_said_in_plain_words(served, tmp_path, monkeypatch):
    url, workbench = served
    Image.new('RGB', (20000, 40)).save(tmp_path / 'narrow.png')  # resized to no row at all
    inputs = inputs_for(url, tmp_path / 'narrow.png')
    said = call(url, inputs)
    assert 'cannot predict images of 20000' in said and 'so narrow' in said
    assert 'OpenCV' not in said

    def defect(*_):
        raise RuntimeError('deep inside')

    monkeypatch.setattr(workbench, 'predict', defect)
    said = call(url, inputs)
    assert 'This image could not be predicted (RuntimeError)' in said and 'deep' not in said


@pytest.mark.slow
def test_the_tool_serves_until_it_is_stopped(work_dirs):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    arguments = ['--work-dirs', str(work_dirs), '--port', str(port)]
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'web.py'), *arguments]

    def take_ctrl_c():  # which the tests ignore when they run in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options = dict(stdout=subprocess.PIPE, text=True, preexec_fn=take_ctrl_c)
    with subprocess.Popen(command, **options) as server:
        try:
            line = next(line for line in server.stdout if 'the page is at' in line)
            assert f'http://127.0.0.1:{port}' in line
            status, body = get(f'http://127.0.0.1:{port}/')
            assert status == 200 and b'cyclemlp_mm' in body
            code, printed = run_tool('web.py', *arguments, cwd=work_dirs, check=False)
            assert code == 2 and f'error: cannot listen on 127.0.0.1:{port}' in printed
            assert server.poll() is None
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
    assert server.returncode in (0, 130, -signal.SIGINT)


def call(url, data):
    """Call the page's own function as its script does; all that the server says about it."""
    _, body = post(f'{url}gradio_api/call/predict', json.dumps({'data': data}).encode())
    answer = json.loads(body)
    if 'event_id' not in answer:
        return f'error: {answer}'
    _, events = get(f'{url}gradio_api/call/predict/{answer["event_id"]}')
    return events.decode()
