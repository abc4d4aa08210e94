"""The page itself, made with Gradio."""

from __future__ import annotations

import html
import os
import re
import threading
import traceback
from collections.abc import Sequence

# Before Gradio is imported: it reports its use to its makers otherwise.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

import gradio as gr
from starlette.middleware import Middleware

from cyclemlp_mm.errors import UserError

from .same_site import SameSite
from .uploads import UploadLimits, read_upload
from .workbench import Workbench

TITLE = 'cyclemlp_mm'
NONE = 'none'
# Fonts of the visitor's own machine: the page asks no other server for anything.
THEME = gr.themes.Default(
    font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'], primary_hue='blue'
)
CSS = """
.swatch {display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 0.7em;
         border: 1px solid #555; vertical-align: -0.08em}
.problem {padding: 0.6em 0.9em; border-left: 4px solid #d55e00; background: #d55e0018}
"""


def build_page(workbench: Workbench, limits: UploadLimits) -> gr.Blocks:
    """The page.

    Args:
        workbench (Workbench): The models.
        limits (UploadLimits): What is taken from the browser.
    """
    names = list(workbench.models)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            '# cyclemlp_mm\nDrop an image to see what the model finds in it: JPEG, PNG, WebP or '
            f'BMP, up to {limits.megabytes:g} MB.'
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                upload = gr.Image(
                    label='Image',
                    type='filepath',
                    sources=['upload', 'clipboard'],
                    height=230,
                    elem_id='upload',
                )
                # Not decoded by Gradio, whose words for a bad file help nobody: read_upload is
                # asked. (A subclass would do, but Gradio writes a .pyi beside every one.)
                upload.preprocess = _uploaded_path
                first = _model_choice(workbench, names, names[0], 'Config', 'first')
                second = _model_choice(
                    workbench, [NONE, *names], NONE, 'Compare with config', 'second'
                )
                button = gr.Button('Predict', variant='primary', elem_id='predict')
            with gr.Column(scale=3):
                slider = gr.Slider(
                    0.05,
                    0.95,
                    value=0.3,
                    step=0.05,
                    label='Score from which objects are shown',
                    elem_id='score',
                )
                problem = gr.HTML(elem_id='problem', visible=True)
                with gr.Row():
                    panels = [_result_panel('first', True), _result_panel('second', False)]
        one_image = threading.Lock()  # decoded at a time, whichever way requests come
        answers = gr.State([None, None], time_to_live=3600)
        shown = [part for panel in panels for part in panel]

        def predict(path, score_thr, *choices):
            """Run one model or both; the slider's answers are those from here on."""
            if path is None:
                return [*_redraw([None, None], score_thr), [None, None], '']
            try:
                with one_image:
                    image = read_upload(path, limits)
                    found = [
                        None if name == NONE else workbench.predict(name, checkpoint, image)
                        for name, checkpoint in zip(choices[::2], choices[1::2], strict=True)
                    ]
            except UserError as error:
                return [*_redraw([None, None], score_thr), [None, None], _problem(str(error))]
            except Exception as error:  # a defect: for who runs the server, not for the visitor
                traceback.print_exc()
                said = f'this image could not be predicted ({type(error).__name__}); the server '
                said += 'printed more about it'
                return [*_redraw([None, None], score_thr), [None, None], _problem(said)]
            return [*_redraw(found, score_thr), found, '']

        inputs = [upload, slider, *first, *second]
        outputs = [*shown, answers, problem]
        gr.on(
            [upload.upload, upload.clear, button.click],
            predict,
            inputs,
            outputs,
            concurrency_limit=1,
            show_progress_on=[panels[0][1]],
            api_name='predict',
        )
        gr.on(
            [slider.input, slider.change],
            _redraw,
            [answers, slider],
            shown,
            trigger_mode='always_last',
            show_progress='hidden',
            api_visibility='private',
        )
    return page


def _problem(said: str) -> str:
    return f'<div class="problem" role="alert">{html.escape(without_folders(said))}</div>'


def without_folders(text: str) -> str:
    """Text with the file name alone in the place of each absolute path."""
    return re.sub(r'(?<![\w.:/~])~?/(?:[^/\'"<>|:;,\n]*[^/\'"<>|:;,\s]/)+', '', text)


def _uploaded_path(payload: object) -> str | None:
    """Where Gradio has put an upload; it refuses paths that are none of its own before."""
    return None if payload is None else payload.path


def _model_choice(
    workbench: Workbench, names: list[str], chosen: str, label: str, key: str
) -> tuple[gr.Dropdown, gr.Dropdown]:
    """A config and, following it, its checkpoints."""

    def checkpoints(name: str) -> list[str]:
        return [NONE] if name == NONE else [p.name for p in workbench.model(name).checkpoints]

    def follow(name: str) -> gr.Dropdown:
        there = checkpoints(name)
        return gr.Dropdown(choices=there, value=there[0], visible=name != NONE)

    config = gr.Dropdown(names, value=chosen, label=label, elem_id=f'{key}-config')
    there = checkpoints(chosen)
    checkpoint = gr.Dropdown(
        there,
        value=there[0],
        label='Checkpoint',
        visible=chosen != NONE,
        elem_id=f'{key}-checkpoint',
    )
    config.change(follow, config, checkpoint, show_progress='hidden', api_visibility='private')
    return config, checkpoint


def _result_panel(key: str, visible: bool) -> tuple[gr.Column, gr.Image, gr.HTML]:
    with gr.Column(visible=visible, min_width=280) as column:
        facts = gr.HTML(elem_id=f'{key}-facts')
        picture = gr.Image(
            label='Result',
            type='numpy',
            format='png',
            interactive=False,
            height=480,
            buttons=['download', 'fullscreen'],
            elem_id=f'{key}-result',
        )
    return column, picture, facts


def _redraw(answers: list, score_thr: float) -> list:
    """Column, picture and facts of both panels, from what is known; no model runs."""
    parts = []
    for i, answer in enumerate(answers):
        visible = i == 0 or answer is not None
        picture = None if answer is None else answer.draw(score_thr)
        facts = '' if answer is None else answer.describe(score_thr)
        parts += [gr.Column(visible=visible), picture, facts]
    return parts


def launch(
    page: gr.Blocks,
    limits: UploadLimits,
    host: str,
    port: int,
    block: bool = True,
    names: Sequence[str] = (),
) -> str:
    """Serve the page.

    Args:
        page (gr.Blocks): See :func:`build_page`.
        limits (UploadLimits): Its file size is refused by the server already.
        host (str): Address to listen on.
        port (int): Port; 0 takes a free one.
        block (bool): Stay here until it is stopped. Defaults to True.
        names (Sequence[str]): See :class:`.same_site.SameSite`. Defaults to ().

    Returns:
        str: The page's address.

    Raises:
        UserError: The port is taken.
    """
    page.queue(max_size=20, api_open=False)  # no way around it
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            inbrowser=False,
            quiet=True,
            max_file_size=int(limits.megabytes * 1e6),
            allowed_paths=[],
            show_error=False,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            state_session_capacity=50,
            theme=THEME,
            css=CSS,
            footer_links=['gradio'],
            app_kwargs=dict(middleware=[Middleware(SameSite, names=[host, *names])]),
        )
    except OSError as error:
        raise UserError(f'cannot listen on {host}:{port}: {error}') from error
    if block:
        print(f'the page is at {url} (stop with Ctrl+C)', flush=True)
        page.block_thread()
    return url
