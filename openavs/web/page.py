"""The page itself, the one module that knows Gradio: it lays out the components and says what answers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from openavs.errors import InputError, OpenAVSError
from openavs.utils.text import pluralize
from openavs.web import fragments
from openavs.web.products import Instance
from openavs.web.visits import Controller, PageContent
from openavs.web.wishes import SegmentRequest, threshold_of, vocabulary_of

if TYPE_CHECKING:
    from openavs.web.server import ServerParts

VIDEO, PICTURE = "video", "picture"
NOTHING = "Nothing leaves this server"
MISTYPED = "an input has the wrong type or is missing; see docs/serve.md, or the API page at the foot of this one"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

# What Gradio has no property for: progress is announced as it changes, the preview of a video has a name, and another
# painting of the same run is played from where the last one was.
SCRIPT = """() => {
  document.documentElement.lang = 'en';
  const name = () => document.querySelectorAll('#oa-video video:not([aria-label])').forEach(
    video => video.setAttribute('aria-label', 'The clip that was given'));
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  const place = document.getElementById('oa-progress');
  if (place) { place.setAttribute('role', 'status'); place.setAttribute('aria-live', 'polite'); }

  const fresh = {at: 0, plays: false, rate: 1};
  let last = {src: '', ...fresh};
  const run = src => src.split('?run=')[1];
  const note = ({target: {src, currentTime: at, paused, playbackRate: rate}}) => {
    if (src && src === last.src) last = {src, at, plays: !paused, rate};
  };
  for (const event of ['timeupdate', 'seeking', 'play', 'pause', 'ratechange'])
    document.addEventListener(event, note, true);
  document.addEventListener('loadedmetadata', ({target}) => {
    if (!target.closest('#oa-player') || target.src === last.src) return;
    last = {...(run(target.src) === run(last.src) ? last : fresh), src: target.src};
    target.currentTime = last.at;
    target.playbackRate = last.rate;
    if (last.plays) target.play().catch(() => {});
  }, true);
}"""


def theme() -> Any:
    """Gradio's plain theme in the fonts of the visitor's own system: none is fetched."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)


def head() -> str:
    """The style sheet of what the page shows itself."""
    return f'<style>{fragments.style()}</style><meta name="color-scheme" content="light dark">'


def build(parts: ServerParts) -> Any:
    """The page, ready to be mounted."""
    return _Page(parts).blocks


class _Blocks(gr.Blocks):  # type: ignore[misc]
    """Blocks that answer inputs of the wrong type and refusals with a sentence, and leave no traceback of them."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        """Convert the inputs of a function as Gradio does; every error is the visitor's."""
        try:
            return await super().preprocess_data(*args, **kwargs)
        except Exception as problem:
            says = problem.message if isinstance(problem, gr.Error) else MISTYPED
            raise gr.Error(says, print_exception=False) from problem

    async def call_function(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function as Gradio does; an error of openavs is a sentence for the visitor."""
        try:
            return await super().call_function(*args, **kwargs)
        except OpenAVSError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem


class _Page:
    """Makes the components once, then ties each to its function."""

    def __init__(self, parts: ServerParts) -> None:
        self._settings, self._models, self._example = parts.settings, parts.models, parts.example
        self._visits = Controller(parts.models, parts.sessions, parts.settings)
        self._first = next(iter(parts.models.offers.values()))
        self.blocks = _Blocks(title="openavs", analytics_enabled=False)
        with self.blocks:
            gr.HTML(fragments.head(self._limits()), apply_default_css=False)
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._lay_out_questions()
                with gr.Column(scale=3, min_width=320):
                    self._lay_out_answers()
            with gr.Accordion("Models and licenses", open=False):
                self.about = gr.HTML(self._about(), apply_default_css=False)
            self._tie()
            self._tie_programs()
        # api_open=False: no question that has to wait can be asked past the queue
        self.blocks.queue(max_size=parts.settings.queue, default_concurrency_limit=1, api_open=False)

    # ------------------------------------------------------------------------------------------- the components

    def _lay_out_questions(self) -> None:
        self.kind = gr.State(VIDEO)
        with gr.Tabs():
            with gr.Tab("Video") as self.video_tab:
                self.video = gr.Video(
                    label="Video with sound", sources=["upload", "webcam"], include_audio=True, elem_id="oa-video"
                )
            with gr.Tab("Picture and sound") as self.picture_tab:
                self.picture = gr.Image(
                    label="Picture", type="filepath", sources=["upload", "webcam"], elem_id="oa-picture"
                )
                self.sound = gr.Audio(
                    label="Its sound", type="filepath", sources=["upload", "microphone"], elem_id="oa-sound"
                )
        self.recipe = gr.Dropdown(
            choices=list(self._models.offers), value=self._first.name, label="Recipe", filterable=False
        )
        self.note = gr.HTML(fragments.recipe_note(self._first), apply_default_css=False)
        self.words = gr.Textbox(
            label="Only these things (optional)", placeholder="dog, cat, bell", max_lines=2, max_length=4000
        )
        self.threshold = gr.Slider(
            0, 1, value=self._first.threshold, step=0.01, label="Threshold", info="Lower finds more, higher is surer."
        )
        self.go = gr.Button("Find what sounds", variant="primary", elem_id="oa-run")
        with gr.Row():
            self.try_it = gr.Button("Try the example", elem_id="oa-example")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="oa-stop")

    def _lay_out_answers(self) -> None:
        self.progress = gr.HTML(fragments.welcome(), elem_id="oa-progress", apply_default_css=False)
        self.player = gr.HTML(elem_id="oa-player", apply_default_css=False)
        self.things = gr.CheckboxGroup(label="Show", visible=False, elem_id="oa-things")
        self.downloads = gr.HTML(elem_id="oa-downloads", apply_default_css=False)
        self.details = gr.HTML(elem_id="oa-details", apply_default_css=False)

    # ---------------------------------------------------------------------------------------------- what answers

    def _tie(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.video_tab.select(lambda: VIDEO, None, self.kind, **quick)
        self.picture_tab.select(lambda: PICTURE, None, self.kind, **quick)
        self.recipe.change(self._on_recipe, self.recipe, [self.threshold, self.note], **quick)
        run: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "models",
            "concurrency_limit": 1,
        }
        answers = [self.progress, self.player, self.things, self.downloads, self.details, self.about, self.stop]
        asked = [self.kind, self.video, self.picture, self.sound, self.recipe, self.words, self.threshold]
        on_run = self.go.click(self._on_run, asked, answers, **run)
        prepared = self.try_it.click(self._on_example, None, [self.video, self.recipe, self.words], **quick)
        on_example = prepared.then(self._on_example_run, [self.video], answers, **run)
        self.stop.click(self._on_stop, None, [self.progress, self.stop], cancels=[on_run, on_example], **quick)
        self.things.input(
            self._on_things,
            self.things,
            self.player,
            show_progress="minimal",
            trigger_mode="always_last",
            concurrency_id="paint",
            concurrency_limit=1,
            api_visibility="private",
        )
        self.blocks.unload(self._on_leave)

    def _on_recipe(self, name: str) -> tuple[Any, str]:
        offer = self._models.offer(name)
        return gr.update(value=offer.threshold), fragments.recipe_note(offer)

    def _on_example(self) -> tuple[str, str, str]:
        """The example is of the world that only `tiny` knows."""
        return str(self._example.clip()), "tiny", ""

    def _on_example_run(self, video: str | None, request: gr.Request) -> Iterator[list[Any]]:
        yield from self._on_run(VIDEO, video, None, None, "tiny", "", None, request)

    def _on_run(
        self,
        kind: str,
        video: str | None,
        picture: str | None,
        sound: str | None,
        recipe: str,
        words: str,
        threshold: float | None,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        source = video if kind == VIDEO else picture
        if not source or (kind == PICTURE and not sound):
            what = "a video" if kind == VIDEO else "a picture and the sound that belongs to it"
            yield self._answers(PageContent(fragments.alert(f"give {what} first, or try the example")), running=False)
            return
        beside = Path(sound) if kind == PICTURE and sound else None
        try:
            wish = SegmentRequest(Path(source), beside, recipe, vocabulary_of(words), threshold_of(threshold))
        except OpenAVSError as problem:
            yield self._answers(PageContent(fragments.alert(str(problem))), running=False)
            return
        shown = PageContent()
        for shown in self._visits.run(request.session_hash, wish):
            yield self._answers(shown, running=True)
        yield self._answers(shown, running=False)

    def _answers(self, shown: PageContent, running: bool) -> list[Any]:
        names = [thing.name for thing in shown.things]
        choices = [(_says(thing), thing.name) for thing in shown.things]
        toggles = gr.update(choices=choices, value=names, visible=bool(names))
        stop = gr.update(visible=running)
        return [shown.progress, shown.player, toggles, shown.downloads, shown.details, self._about(), stop]

    def _on_things(self, names: list[str], request: gr.Request) -> str:
        try:
            return self._visits.repaint(request.session_hash, names)
        except OpenAVSError as problem:
            return fragments.alert(str(problem))

    def _on_stop(self, request: gr.Request) -> tuple[str, Any]:
        self._visits.stop(request.session_hash)
        return fragments.stopped(), gr.update(visible=False)

    def _on_leave(self, request: gr.Request) -> None:
        self._visits.end(request.session_hash)

    # -------------------------------------------------------------------------------------------------- programs

    def _tie_programs(self) -> None:
        """The API: what docs/serve.md promises, whatever the page looks like."""
        with gr.Row(visible=False):
            video, sound = gr.File(label="video", type="filepath"), gr.File(label="sound", type="filepath")
            recipe, words = gr.Textbox(label="recipe", value=self._first.name), gr.Textbox(label="vocabulary")
            threshold = gr.Number(label="threshold", value=None)
            data, found = gr.JSON(label="result"), gr.JSON(label="recipes")
            files = [gr.File(label=name) for name in ("overlay", "masks", "result_file", "coco")]
            ask, which = gr.Button(), gr.Button()
        ask.click(
            self._segment,
            [video, sound, recipe, words, threshold],
            [data, *files],
            api_name="segment",
            api_description="Finds, names and segments what sounds in a video, or in a picture with its sound.",
            concurrency_id="models",
            concurrency_limit=1,
        )
        which.click(
            self._recipes,
            None,
            found,
            api_name="recipes",
            api_description="The recipes of this server, with their models and licenses.",
            queue=False,
        )

    def _segment(
        self,
        video: str | None,
        sound: str | None = None,
        recipe: str | None = None,
        vocabulary: str | None = None,
        threshold: float | None = None,
        request: gr.Request = None,
    ) -> tuple[Any, ...]:
        """The defaults are those of the API: only `video` has to be given."""
        if not video:
            raise InputError("give a video, or a picture with its sound")
        beside = Path(sound) if sound else None
        name = recipe or self._first.name
        wish = SegmentRequest(Path(video), beside, name, vocabulary_of(vocabulary), threshold_of(threshold))
        answer = self._visits.answer(request.session_hash, wish)
        return answer.data, *map(str, (answer.overlay, answer.masks, answer.result, answer.coco))

    def _recipes(self) -> list[dict[str, Any]]:
        return [
            {
                "name": offer.name,
                "summary": offer.recipe.summary,
                "threshold": offer.threshold,
                "loaded": offer.name in self._models.loaded,
                "models": [
                    {"stage": m.stage, "model": m.title, "reference": m.reference, "license": m.license}
                    for m in offer.models
                ],
            }
            for offer in self._models.offers.values()
        ]

    # ------------------------------------------------------------------------------------------------ small things

    def _limits(self) -> str:
        size, seconds = self._settings.max_upload_mb, self._settings.max_seconds
        told = [name for name, offer in self._models.offers.items() if offer.asks_a_server]
        leaves = f"What is heard goes to a language model's server with {' and '.join(told)}" if told else NOTHING
        return f"Clips of up to {seconds:g} s and {size} MB. {leaves}; files go when you close the page."

    def _about(self) -> str:
        return fragments.about(self._models.offers, self._models.loaded)


def _says(thing: Instance) -> str:
    return f"{thing.name} ({pluralize(thing.frames, 'frame')}, best {thing.best:.2f})"
