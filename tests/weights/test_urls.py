"""Files of http(s) URLs: downloaded once, whole, and never taken for another URL's."""

import hashlib
import http.server
import io
import threading

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_checkpoint

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.errors import DownloadError, MissingFileError
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.weights import read_checkpoint


def weights(value):
    out = io.BytesIO()
    torch.save({'w': torch.full((100,), float(value))}, out)
    return out.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    files, declared, asked = {}, {}, []

    def do_GET(self):
        self.asked.append(self.path)
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        length = self.declared.get(self.path, len(content or b''))
        if length is not None:
            self.send_header('Content-Length', str(length))
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A web server with ``files``; and the folder of downloads."""
    for name in ('files', 'declared'):
        monkeypatch.setattr(Server, name, {})
    monkeypatch.setattr(Server, 'asked', [])
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setenv('no_proxy', '*')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.address = f'http://127.0.0.1:{server.server_port}'
    Server.folder = tmp_path / 'checkpoints'
    yield Server
    server.shutdown()
    server.server_close()


def test_two_urls_with_one_last_part(site):
    for one, other in (
        ('/run_a/epoch_12.pth', '/run_b/epoch_12.pth'),
        ('/get/model.pth?run=a', '/get/model.pth?run=b'),
        ('/a/', '/b/'),
    ):
        site.asked.clear()
        site.files.update({one: weights(1), other: weights(2)})
        assert read_checkpoint(site.address + one)['w'][0] == 1
        assert read_checkpoint(site.address + other)['w'][0] == 2
        assert read_checkpoint(site.address + one)['w'][0] == 1
        assert site.asked == [one, other]


def test_the_download_is_used_again_and_that_is_logged(site, log_lines):
    site.files['/epoch_1.pth'] = weights(1)
    url = f'{site.address}/epoch_1.pth'
    read_checkpoint(url)
    (path,) = site.folder.iterdir()
    assert path.name.startswith('epoch_1-') and path.suffix == '.pth'
    assert f'downloading {url} to {path}' in log_lines
    read_checkpoint(url)
    assert f'{url}: using {path}, downloaded before' in log_lines


def test_a_download_that_breaks_off_leaves_nothing(site):
    whole = weights(1)
    site.files['/epoch_1.pth'] = whole[: len(whole) // 2]
    site.declared['/epoch_1.pth'] = len(whole)
    with pytest.raises(DownloadError, match=f'broke off after .* of {len(whole)} bytes|Incomplete'):
        read_checkpoint(f'{site.address}/epoch_1.pth')
    assert list(site.folder.iterdir()) == []
    site.files['/epoch_1.pth'] = whole
    assert read_checkpoint(f'{site.address}/epoch_1.pth')['w'][0] == 1


def test_the_hash_in_a_name(site):
    content = weights(1)
    digest = hashlib.sha256(content).hexdigest()[:8]
    wrong = 'deadbeef' if digest != 'deadbeef' else 'deadbeee'
    site.files.update({f'/a-{wrong}.pth': content, '/run-20260101.pth': content})
    with pytest.raises(DownloadError, match='SHA-256 does not begin with'):
        read_checkpoint(f'{site.address}/a-{wrong}.pth')
    assert list(site.folder.iterdir()) == []
    read_checkpoint(f'{site.address}/run-20260101.pth')  # a date


def test_a_file_of_torchs_own_cache_is_taken_by_its_hash_only(site):
    site.folder.mkdir()
    content, name = weights(1), ''
    while not any(c in 'abcdef' for c in name):  # digits alone could be a date
        content += b'\0'
        name = hashlib.sha256(content).hexdigest()[:8]
    (site.folder / f'a-{name}.pth').write_bytes(content)
    (site.folder / 'epoch_1.pth').write_bytes(weights(3))
    assert read_checkpoint(f'{site.address}/any/a-{name}.pth')['w'][0] == 1
    assert site.asked == []
    site.files['/epoch_1.pth'] = weights(2)
    assert read_checkpoint(f'{site.address}/epoch_1.pth')['w'][0] == 2


def test_an_unreachable_url_says_what_to_do(site):
    url = f'{site.address}/gone/CycleMLP_B1.pth'
    with pytest.raises(DownloadError, match='404') as caught:
        read_checkpoint(url)
    message = str(caught.value)
    path = message.partition('put it at ')[2].partition(';')[0]
    assert f'curl -L {url}' in message and path.startswith(str(site.folder))
    site.folder.mkdir(exist_ok=True)
    with open(path, 'wb') as file:
        file.write(weights(5))
    assert read_checkpoint(url)['w'][0] == 5


def test_what_is_no_url(site):
    for url in ('http://[bad/a.pth', 'https:///a.pth', 'http://'):
        with pytest.raises(DownloadError, match='cannot download'):
            read_checkpoint(url)
    for path in ('a//[b/c.pth', '~nobody_here/a.pth', 'a?b#c.pth'):
        with pytest.raises(MissingFileError, match=r'does not exist|no home folder ~'):
            read_checkpoint(path)


class Foreign(BaseModule):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer = torch.nn.Linear(2, 2)


def test_the_advice_about_init_cfg_is_for_our_backbones_only(site):
    url = f'{site.address}/gone.pth'
    cfg, advice = dict(type='Pretrained', checkpoint=url), 'model.backbone.init_cfg.checkpoint=FILE'
    for model in (CycleMLP('b1', init_cfg=cfg), MPViT('tiny', init_cfg=cfg), Foreign(init_cfg=cfg)):
        with pytest.raises(DownloadError, match=url) as caught:
            model.init_weights()
        assert (advice in str(caught.value)) == (type(model) is not Foreign)
        with pytest.raises(DownloadError, match=url) as caught:
            load_checkpoint(model, url)
        assert advice not in str(caught.value)
