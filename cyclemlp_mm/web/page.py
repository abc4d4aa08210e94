"""The page itself, made with Gradio."""

import html
import ipaddress
import os
import re
import socket
import threading
import traceback
from collections.abc import Sequence
from urllib.parse import urlsplit

# Before Gradio is imported: it reports its use to its makers otherwise.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

import gradio as gr
import numpy as np
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.visualization.overlay import Style

from .uploads import UploadLimits, read_upload
from .workbench import Workbench

NONE, SHOWN = 'none', ['labels', 'scores']
# Fonts of the visitor's own machine: the page asks no other server for anything.
FONTS = dict(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
CSS = """
.swatch {display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 0.7em;
         border: 1px solid #555; vertical-align: -0.08em}
/* The place of what comes later: nothing moves. */
#first-facts, #second-facts {min-height: 5.5em}
#first-knows, #second-knows {min-height: 2.6em; font-size: 0.9em}
#examples, #examples .grid-wrap {overflow: hidden}
.problem {padding: 0.6em 0.9em; border-left: 4px solid #d55e00; background: #d55e0018}
"""
QUIET = dict(show_progress='hidden', api_visibility='private')


def build_page(
    workbench: Workbench, limits: UploadLimits, examples: Sequence[str] = ()
) -> gr.Blocks:
    """Build the page for the models of a workbench, with limits for what the browser sends.

    ``examples`` are images of this machine that a visitor can choose.
    """
    about = (
        '# cyclemlp_mm\nDrop an image to see what the model finds in it: JPEG, PNG, WebP or BMP,'
    )
    with gr.Blocks(title='cyclemlp_mm', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f'{about} up to {limits.megabytes:g} MB.')
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                look = dict(label='Image', height=230, format='png', elem_id='upload')
                upload = gr.Image(type='filepath', sources=['upload', 'clipboard'], **look)
                # Gradio only checks that the path is its own: read_upload decodes, with better
                # messages. (A subclass would do, but Gradio writes a .pyi next to every one.)
                upload.preprocess = lambda payload: payload and payload.path
                if examples:
                    pictures = [read_upload(path, limits)[..., ::-1] for path in examples]
                    look = dict(label='Examples', show_label=False, columns=3, height=120)
                    look |= dict(allow_preview=False, interactive=False, buttons=[])
                    look['elem_id'] = 'examples'
                    gallery = gr.Gallery(pictures, **look)

                    def choose(event: gr.SelectData) -> np.ndarray:
                        return pictures[event.index]

                    chosen = gallery.select(choose, None, upload, **QUIET)
                first = _model_choice(page, workbench, 'Config', 'first')
                second = _model_choice(page, workbench, 'Compare with config', 'second')
                button = gr.Button('Predict', variant='primary', elem_id='predict')
                problem = gr.HTML(elem_id='problem', visible=True)
            with gr.Column(scale=3):
                with gr.Row():
                    look = dict(label='Minimum score', elem_id='score', scale=3)
                    slider = gr.Slider(0.05, 0.95, value=0.3, step=0.05, **look)
                    look = dict(label='Show', elem_id='show', min_width=200)
                    show = gr.CheckboxGroup(SHOWN, value=SHOWN, **look)
                with gr.Row():
                    shown = [*_result_panel('first'), *_result_panel('second')]
        one_image = threading.Lock()  # decoded at a time, whichever way requests come
        answers = gr.State([None, None], time_to_live=3600)

        def predict(path: str | None, score_thr: float, *choices) -> list:
            """Run one model or both; the slider's answers are those from here on."""
            found, message, (*choices, shows) = [None, None], '', choices
            try:
                with one_image:
                    if path is not None:
                        image = read_upload(path, limits)
                        found = [
                            None if name == NONE else workbench.predict(name, checkpoint, image)
                            for name, checkpoint in zip(choices[::2], choices[1::2], strict=True)
                        ]
            except UserError as error:
                message = str(error)
            except Exception as error:  # a defect: for who runs the server, not for the visitor
                traceback.print_exc()
                kind = type(error).__name__
                message = f'This image could not be predicted ({kind}); the server printed more'
            if message:
                message = html.escape(without_folders(message))
                message = f'<div class="problem" role="alert">{message}</div>'
            return [*_redraw(found, score_thr, shows), found, message]

        call = dict(fn=predict, inputs=[upload, slider, *first, *second, show])
        call |= dict(outputs=[*shown, answers, problem], show_progress_on=[shown[1]])
        # A second image while the first is predicted: the answer shown is that of the second.
        call |= dict(concurrency_limit=1, concurrency_id='predict', trigger_mode='always_last')
        gr.on([upload.upload, upload.clear, button.click], api_name='predict', **call)
        if examples:
            chosen.then(api_visibility='private', **call)
        moved = [slider.input, slider.change, show.change]
        gr.on(moved, _redraw, [answers, slider, show], shown, trigger_mode='always_last', **QUIET)
    return page


def without_folders(text: str) -> str:
    """Text with the file name alone in the place of each absolute path."""
    return re.sub(r'(?<![\w.:/~])~?/(?:[^/\'"<>|:;,\n]*[^/\'"<>|:;,\s]/)+', '', text)


def _model_choice(
    page: gr.Blocks, workbench: Workbench, label: str, key: str
) -> tuple[gr.Dropdown, gr.Dropdown]:
    """A config, following it its checkpoints, and what it knows; the second may be none."""
    names = [*workbench.models] if key == 'first' else [NONE, *workbench.models]

    def checkpoints(name: str) -> dict:
        there = [NONE] if name == NONE else [p.name for p in workbench.model(name).checkpoints]
        return dict(choices=there, value=there[0], visible=name != NONE)

    def knows(name: str, checkpoint: str) -> gr.HTML:
        try:
            text = '' if NONE in (name, checkpoint) else workbench.knows(name, checkpoint)
            return gr.HTML(html.escape(text), visible=bool(text) or key == 'first')
        except UserError:  # reported with the prediction
            return gr.HTML('', visible=key == 'first')

    config = gr.Dropdown(names, value=names[0], label=label, elem_id=f'{key}-config')
    look = dict(label='Checkpoint', elem_id=f'{key}-checkpoint')
    checkpoint = gr.Dropdown(**checkpoints(names[0]), **look)
    known = gr.HTML(elem_id=f'{key}-knows', visible=key == 'first')
    config.change(lambda name: gr.Dropdown(**checkpoints(name)), config, checkpoint, **QUIET)
    gr.on([page.load, checkpoint.change], knows, [config, checkpoint], known, **QUIET)
    return config, checkpoint


def _result_panel(key: str) -> tuple[gr.Column, gr.Image, gr.HTML]:
    look = dict(label='Result', height=480, buttons=['download', 'fullscreen'])
    with gr.Column(visible=key == 'first', min_width=280) as column:
        kind = dict(type='numpy', format='png', interactive=False, elem_id=f'{key}-result')
        picture = gr.Image(**look, **kind)
        return column, picture, gr.HTML(elem_id=f'{key}-facts')


def _redraw(answers: list, score_thr: float, shows: list[str]) -> list:
    """Column, picture and facts of both panels, from what is known; no model runs."""
    style, parts = Style(score_thr, None, 'labels' not in shows, 'scores' not in shows), []
    for i, answer in enumerate(answers):
        there = answer is not None
        drawn = [answer.draw(style), answer.describe(score_thr)] if there else [None, '']
        parts += [gr.Column(visible=i == 0 or there), *drawn]
    return parts


class SameSite:
    """ASGI middleware that answers 403 to foreign ``Host`` and ``Origin`` headers.

    A page elsewhere could send requests here, and read the answers by a name of its own. Numeric
    addresses, this machine's names and ``names`` are taken; an ``Origin`` must be the same host.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()) -> None:
        self.app = app
        own = socket.gethostname()
        self.names = {name.lower() for name in ('localhost', own, f'{own}.local', *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        answer = self.app
        if scope['type'] in ('http', 'websocket'):
            headers = Headers(scope=scope)
            host, origin = headers.get('host', ''), headers.get('origin')
            if not self._is_own(host):
                answer = PlainTextResponse('unknown host: start with --allow-host NAME', 403)
            elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                answer = PlainTextResponse('requests from other sites are rejected', 403)
        await answer(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f'//{host}').hostname or ''
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def launch(
    page: gr.Blocks,
    limits: UploadLimits,
    host: str,
    port: int,
    block: bool = True,
    names: Sequence[str] = (),
) -> str:
    """Serve the page; returns its address. Raises a UserError if the port is taken.

    Args:
        page (gr.Blocks): See :func:`build_page`.
        limits (UploadLimits): The server itself rejects larger files.
        host (str): Address to listen on.
        port (int): Port; 0 takes a free one.
        block (bool): Stay here until it is stopped. Defaults to True.
        names (Sequence[str]): See :class:`.same_site.SameSite`. Defaults to ().
    """
    page.queue(max_size=20, api_open=False)  # no way around it
    options = dict(share=False, pwa=False, mcp_server=False, enable_monitoring=False)
    options |= dict(inbrowser=False, quiet=True, show_error=False, ssr_mode=False)
    options |= dict(theme=gr.themes.Default(**FONTS, primary_hue='blue'), css=CSS)
    options |= dict(footer_links=['gradio'], allowed_paths=[], state_session_capacity=50)
    options['app_kwargs'] = dict(middleware=[Middleware(SameSite, names=[host, *names])])
    options['max_file_size'] = int(limits.megabytes * 1e6)
    try:
        where = dict(server_name=host, server_port=port or None)
        _, url, _ = page.launch(**where, prevent_thread_lock=True, **options)
    except OSError as error:
        raise UserError(f'cannot listen on {host}:{port}: {error}') from error
    if block:
        print(f'the page is at {url} (stop with Ctrl+C)', flush=True)
        page.block_thread()
    return url
