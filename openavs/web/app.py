"""Gradio UI of the web page and its API."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from openavs.errors import InputError, OpenAVSError
from openavs.visualization.html import asset
from openavs.web import TINY, SegmentRequest, components, parse_threshold, parse_vocabulary
from openavs.web.controller import Controller, PageContent
from openavs.web.server import is_file_in

if TYPE_CHECKING:
    from openavs.web.server import ServerParts

VIDEO, IMAGE = "video", "image"
INVALID_INPUT = "an input is missing or has the wrong type; see docs/serve.md, or 'Use via API' at the end of the page"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
CLICKED_RUN = """element.addEventListener('click', ({target}) => {
  const button = target.closest('[data-run]');
  if (button) trigger('click', {run: Number(button.dataset.run)});
});"""
LOWERED_THRESHOLD = """element.addEventListener('change', ({target}) => {
  if (target.matches('.threshold')) trigger('release', {threshold: Number(target.value)});
});"""
READ_TOKEN = "() => sessionStorage.getItem('openavs') ?? ''"  # which survives a reload, and ends with the tab
KEEP_TOKEN = "token => sessionStorage.setItem('openavs', token)"
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> Any:
    """Gradio's default theme in system fonts, so that no font is fetched."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)


def head() -> str:
    """Stylesheet and color scheme for the head of the page."""
    return f'<style>{components.stylesheet()}</style><meta name="color-scheme" content="light dark">'


def script() -> str:
    """The function that runs when the page has loaded; the report has the same player."""
    return f"() => {{\n{asset('report/player.js')}\n({asset('web/page.js')})();\n}}"


def build(parts: ServerParts) -> Any:
    """Gradio blocks of the page and the API."""
    return _Page(parts).blocks


class _Blocks(gr.Blocks):  # type: ignore[misc]
    """Blocks that accept uploaded files only and turn invalid inputs and openavs errors into messages."""

    uploads: Path

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        """Check that inputs name no file or address but uploads, then convert them."""
        if not all(is_file_in(self.uploads, path) for path in _file_names(inputs)):
            raise gr.Error("a file has to be uploaded to this page first", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except Exception as error:
            message = error.message if isinstance(error, gr.Error) else INVALID_INPUT
            raise gr.Error(message, print_exception=False) from error

    async def call_function(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the page."""
        try:
            return await super().call_function(*args, **kwargs)
        except OpenAVSError as error:
            raise gr.Error(str(error), print_exception=False) from error


def _file_names(data: Any) -> Iterator[str]:
    """All strings named `path` in nested data."""
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            pending += value.values()
        elif isinstance(value, list):
            pending += value


class _Page:
    """Components of the page and the functions that they call."""

    def __init__(self, parts: ServerParts) -> None:
        self._config, self._models, self._sessions = parts.config, parts.models, parts.sessions
        self._example = parts.example
        self._controller = Controller(parts.models, parts.sessions, parts.config)
        self._first = next(iter(parts.models.options.values()))
        warnings.filterwarnings("ignore", "A `<script>` tag was found")  # it is data of the player
        self.blocks = _Blocks(title="openavs", analytics_enabled=False)
        self.blocks.uploads = parts.uploads
        with self.blocks:
            gr.HTML(components.fragment("head", limits=self._limits()), apply_default_css=False)
            with gr.Row(elem_id="oa-main"):
                with gr.Column(scale=2, min_width=320, elem_id="oa-form"):
                    self._add_inputs()
                    with gr.Column(elem_id="oa-options"):
                        self._add_options()
                with gr.Column(scale=3, min_width=320, elem_id="oa-result"):
                    self._add_outputs()
            with gr.Accordion("Models and licenses", open=False):
                self.about = gr.HTML(self._about(), apply_default_css=False)
            self._connect()
            self._add_api()
        # api_open=False: functions that wait in the queue cannot be called without it
        self.blocks.queue(max_size=parts.config.queue, default_concurrency_limit=1, api_open=False)

    # ------------------------------------------------------------------------------------------------------ components

    def _add_inputs(self) -> None:
        self.kind = gr.State(VIDEO)
        with gr.Tabs():
            with gr.Tab("Video") as self.video_tab:
                self.video = gr.Video(
                    label="Video with audio",
                    sources=["upload", "webcam"],
                    include_audio=True,
                    height=200,
                    elem_id="oa-video",
                )
            with gr.Tab("Image and audio") as self.image_tab:
                self.image = gr.Image(
                    label="Image", type="filepath", sources=["upload", "webcam"], height=200, elem_id="oa-image"
                )
                self.audio = gr.Audio(
                    label="Audio", type="filepath", sources=["upload", "microphone"], elem_id="oa-audio"
                )
        with gr.Row(elem_id="oa-buttons"):
            self.run = gr.Button("Find what sounds", variant="primary", min_width=140, elem_id="oa-run")
            self.example = gr.Button("Try the example", min_width=140, elem_id="oa-example")
            self.stop = gr.Button("Stop", variant="stop", visible=False, min_width=80, elem_id="oa-stop")
        self.progress = gr.HTML(components.fragment("welcome"), elem_id="oa-progress", apply_default_css=False)

    def _add_options(self) -> None:
        self.prompts = gr.Dropdown(
            label="Search for",
            info="Remove an object or type another one, then press Find what sounds.",
            multiselect=True,
            allow_custom_value=True,
            visible=False,
            elem_id="oa-prompts",
        )
        self.recipe = gr.Dropdown(
            choices=list(self._models.options), value=self._first.name, label="Recipe", filterable=False
        )
        self.note = gr.HTML(components.fragment("recipe", option=self._first), apply_default_css=False)
        self.words = gr.Textbox(
            label="Only these objects (optional)", placeholder="dog, cat, bell", max_lines=2, max_length=4000
        )
        self.threshold = gr.Slider(
            0, 1, value=self._first.threshold, step=0.01, label="Threshold", info="Lower values find more objects."
        )

    def _add_outputs(self) -> None:
        example = components.example(self._example)
        self.player = gr.HTML(example, elem_id="oa-player", apply_default_css=False, js_on_load=LOWERED_THRESHOLD)
        self.correct = gr.HTML(elem_id="oa-correct", apply_default_css=False, js_on_load=asset("web/correct.js"))
        self.data = gr.HTML(elem_id="oa-data", apply_default_css=False)
        self.history = gr.HTML(elem_id="oa-history", apply_default_css=False, js_on_load=CLICKED_RUN)
        with gr.Column(elem_id="oa-more"):
            self.downloads = gr.HTML(elem_id="oa-downloads", apply_default_css=False)
            self.command = gr.Textbox(
                label="The same on the command line",
                interactive=False,
                visible=False,
                buttons=["copy"],
                elem_id="oa-command",
            )
            self.details = gr.HTML(elem_id="oa-details", apply_default_css=False)

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        queued: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1}
        run = {**queued, "show_progress": "hidden", "concurrency_id": "models"}
        self.video_tab.select(lambda: VIDEO, None, self.kind, **quick)
        self.image_tab.select(lambda: IMAGE, None, self.kind, **quick)
        self.recipe.change(self._on_recipe, self.recipe, [self.threshold, self.note], **quick)
        inputs = [self.kind, self.video, self.image, self.audio, self.recipe, self.words, self.threshold, self.prompts]
        outputs = [self.progress, self.player, self.data, self.correct, self.downloads, self.details, self.history]
        outputs += [self.prompts, self.threshold, self.command, self.about, self.stop]
        example = [self.video, self.recipe, self.words, self.progress]
        on_run = self.run.click(self._waiting, None, self.progress, **quick).then(self._on_run, inputs, outputs, **run)
        on_example = self.example.click(self._on_example, None, example, **quick).then(
            self._on_example_run, [self.video], outputs, **run
        )
        on_threshold = self.threshold.release(
            self._on_threshold, self.threshold, outputs, trigger_mode="always_last", **run
        )
        on_player = self.player.release(self._on_player_threshold, None, outputs, trigger_mode="always_last", **run)
        on_correct = self.correct.submit(self._on_correct, None, outputs, trigger_mode="multiple", **run)
        files = {**quick, "queue": True, "concurrency_id": "files", "concurrency_limit": 1}
        on_correct.then(self._on_corrected, None, outputs, trigger_mode="multiple", **files)
        running = [on_run, on_example, on_threshold, on_player]
        self.stop.click(self._on_stop, None, [self.progress, self.stop], cancels=running, **quick)
        self.history.click(self._on_history, None, outputs, **quick)
        token = gr.Textbox(visible=False)
        given = [self.video, self.image, self.audio, self.recipe, self.words]
        loaded = self.blocks.load(self._on_load, token, [*outputs, *given, token], js=READ_TOKEN, **quick)
        loaded.then(None, token, None, js=KEEP_TOKEN, **quick)
        self.blocks.unload(self._on_unload)

    # --------------------------------------------------------------------------------------------------------- actions

    def _on_recipe(self, name: str) -> tuple[Any, str]:
        option = self._models.option(name)
        return gr.update(value=option.threshold), components.fragment("recipe", option=option)

    def _waiting(self) -> str:
        return components.fragment("waiting", is_busy=self._models.is_busy)

    def _on_example(self) -> tuple[str, str, str, str]:
        return str(self._example), TINY, "", self._waiting()  # only tiny was trained on the world of the example

    def _on_example_run(self, video: str | None, request: gr.Request) -> Iterator[list[Any]]:
        yield from self._on_run(VIDEO, video, None, None, TINY, "", None, None, request)

    def _on_run(
        self,
        kind: str,
        video: str | None,
        image: str | None,
        audio: str | None,
        recipe: str,
        words: str,
        threshold: float | None,
        prompts: list[str] | None,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        content = PageContent(components.fragment("stopped"))
        try:
            if kind == VIDEO and not video:
                raise InputError("give a video first, or try the example")
            if kind == IMAGE and not (image and audio):
                raise InputError("give an image and its audio first, or try the example")
            files = (video, None) if kind == VIDEO else (image, audio)
            wanted = _request(*files, recipe, words, threshold)
            for content in self._controller.run(request.session_hash, wanted, prompts):
                yield self._outputs(content, running=True)
        except OpenAVSError as error:
            content = PageContent(components.alert(str(error)))
        yield self._outputs(PageContent(content.progress), running=False)

    def _on_threshold(self, threshold: float, request: gr.Request, only_lower: bool = False) -> Iterator[list[Any]]:
        content = None
        for content in self._controller.rerun(request.session_hash, threshold, only_lower):
            yield self._outputs(content, running=True)
        yield self._outputs(content and PageContent(content.progress), running=False)

    def _on_player_threshold(self, request: gr.Request, event: gr.EventData) -> Iterator[list[Any]]:
        yield from self._on_threshold(_event_data(event).get("threshold"), request, only_lower=True)

    def _on_correct(self, request: gr.Request, event: gr.EventData) -> Iterator[list[Any]]:
        yield self._outputs(PageContent(components.fragment("corrected", seconds=None)), running=False)
        try:
            for content in self._controller.correct(request.session_hash, _event_data(event)):
                yield self._outputs(content, running=False)
        except OpenAVSError as error:
            yield self._outputs(PageContent(components.alert(str(error))), running=False)

    def _on_corrected(self, request: gr.Request) -> list[Any]:
        return self._outputs(self._controller.finish_corrections(request.session_hash), running=False)

    def _on_history(self, request: gr.Request, event: gr.EventData) -> list[Any]:
        return self._outputs(self._controller.show(request.session_hash, _event_data(event).get("run")), running=False)

    def _on_load(self, token: str, request: gr.Request) -> list[Any]:
        content, token, last = self._controller.resume(request.session_hash, token)
        given = [gr.skip()] * 5
        if last is not None:
            files = (last.source, None, None) if last.audio is None else (None, last.source, last.audio)
            given = [gr.skip() if path is None else str(path) for path in files]
            given += [last.recipe, ", ".join(last.vocabulary)]
        return [*self._outputs(content, running=False), *given, token]

    def _outputs(self, content: PageContent | None, running: bool) -> list[Any]:
        """Values of `outputs`: the parts of the content that are not None."""
        if content is None:
            return [*[gr.skip()] * 11, gr.update(visible=running)]
        html: tuple[Any, ...] = (content.progress, content.player, content.data, content.correct)
        html += (content.downloads, content.details, content.history)
        prompts = command = gr.skip()
        if content.prompts is not None:
            prompts = gr.update(choices=list(content.choices), value=list(content.prompts), visible=True)
            command = gr.update(value=content.command, visible=True)
        values = [gr.skip() if value is None else value for value in (*html, prompts, content.threshold, command)]
        return [*values, self._about(), gr.update(visible=running)]

    def _on_stop(self, request: gr.Request) -> tuple[str, Any]:
        self._sessions.get(request.session_hash).stop()
        return components.fragment("stopped"), gr.update(visible=False)

    def _on_unload(self, request: gr.Request) -> None:
        self._sessions.end(request.session_hash)

    # ------------------------------------------------------------------------------------------------------------- API

    def _add_api(self) -> None:
        """Endpoints of docs/serve.md, independent of the components of the page."""
        with gr.Row(visible=False):
            video, audio = gr.File(label="video", type="filepath"), gr.File(label="audio", type="filepath")
            recipe, words = gr.Textbox(label="recipe", value=self._first.name), gr.Textbox(label="vocabulary")
            threshold = gr.Number(label="threshold", value=None)
            data, recipes = gr.JSON(label="result"), gr.JSON(label="recipes")
            files = [gr.File(label=name) for name in ("overlay", "masks", "result_file", "coco")]
            segment, list_recipes = gr.Button(), gr.Button()
        segment.click(
            self._segment,
            [video, audio, recipe, words, threshold],
            [data, *files],
            api_name="segment",
            api_description="Finds, names and segments the sounding objects of a video, or of an image and its audio.",
            concurrency_id="models",
            concurrency_limit=1,
        )
        list_recipes.click(
            self._recipes,
            None,
            recipes,
            api_name="recipes",
            api_description="The recipes of this server, with their models and licenses.",
            queue=False,
        )

    def _segment(
        self,
        video: str | None,
        audio: str | None = None,
        recipe: str | None = None,
        vocabulary: str | None = None,
        threshold: float | None = None,
        request: gr.Request = None,
    ) -> tuple[Any, ...]:
        """The defaults are those of the API, which requires `video` only."""
        if not video:
            raise InputError("give a video, or an image and its audio")
        wanted = _request(video, audio, recipe or self._first.name, vocabulary, threshold)
        data, files = self._controller.segment(request.session_hash, wanted)
        return data, *map(str, files)

    def _recipes(self) -> list[dict[str, Any]]:
        return [
            {
                "name": option.name,
                "summary": option.recipe.summary,
                "threshold": option.threshold,
                "loaded": option.name in self._models.loaded,
                "models": [
                    {"stage": m.stage, "model": m.title, "reference": m.reference, "license": m.license}
                    for m in option.models
                ],
            }
            for option in self._models.options.values()
        ]

    # ------------------------------------------------------------------------------------------------------------ texts

    def _limits(self) -> str:
        remote = [name for name, option in self._models.options.items() if option.uses_remote_server]
        privacy = "Nothing leaves this server"
        if remote:
            privacy = f"{' and '.join(remote)} sends the audio captions to the server of a language model"
        return (
            f"Clips of up to {self._config.max_seconds:g} s and {self._config.max_upload_mb} MB. {privacy}; files are "
            "removed when you close the page."
        )

    def _about(self) -> str:
        return components.fragment("about", options=list(self._models.options.values()), loaded=self._models.loaded)


def _event_data(event: gr.EventData) -> Any:
    """Return the data of an event of the page; InputError if a program sent none."""
    if not isinstance(event._data, dict):
        raise InputError(INVALID_INPUT)
    return event._data


def _request(
    source: str | None, audio: str | None, recipe: str, vocabulary: str | None, threshold: object
) -> SegmentRequest:
    paths = Path(source or ""), Path(audio) if audio else None
    return SegmentRequest(*paths, recipe, parse_vocabulary(vocabulary), parse_threshold(threshold))
