"""What stands on the page, and where. What happens when it is used stands in `events`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import gradio as gr

from dpseg.serving.page.kept import DOWNLOADS
from dpseg.serving.page.names import offered_vocabularies, suggestions
from dpseg.serving.page.work import COMPARISONS
from dpseg.serving.settings import ServeSettings

TITLE = "DPSeg"
_INTRO = "# DPSeg\nNames every pixel of a photo, from words and from pictures that show what you mean."
_NAMES_HELP = "One a line, or commas between them. couch = sofa: two words for one thing."
_DOWNLOAD_LABELS = {"overlay": "↓ Picture", "png": "↓ Labels", "json": "↓ JSON", "coco": "↓ COCO"}
_COMPARE_LABELS = {"refinement": "Inference I and II", "prompts": "Words and pictures"}


@dataclass(frozen=True, eq=False)
class Asking:
    """The components with which a visitor says what is wanted."""

    photo: gr.Image
    names: gr.Textbox
    add: gr.Dropdown
    vocabulary: gr.Dropdown
    suggest: gr.Button
    marker: gr.HTML
    marked_class: gr.Dropdown
    add_reference: gr.Button
    reference_list: gr.HTML
    refine: gr.Checkbox
    background: gr.Slider
    run: gr.Button


@dataclass(frozen=True, eq=False)
class Showing:
    """The components that show, compare and correct a result."""

    tabs: gr.Tabs
    viewer: gr.HTML
    downloads: dict[str, gr.Button]
    download: gr.HTML
    comparison: gr.Radio
    compare: gr.Button
    slider: gr.ImageSlider
    position: gr.Slider
    fixer: gr.HTML
    fixed_class: gr.Dropdown
    as_reference: gr.Checkbox
    correct: gr.Button


@dataclass(frozen=True, eq=False)
class Parts:
    """All of the page.

    Attributes:
        asking: the left side.
        showing: the right side.
        status: the message line.
        references: a visitor's `PageReference`s.
        kept: a visitor's last `KeptResult`, or None.
    """

    asking: Asking
    showing: Showing
    status: gr.HTML
    references: gr.State
    kept: gr.State


def asset(name: str) -> str:
    """Returns the text of a file in `assets`."""
    return resources.files("dpseg.serving.page").joinpath("assets", name).read_text("utf-8")


def lay_out(settings: ServeSettings, refine: bool, seconds_kept: int, inside: Callable[[], int]) -> Parts:
    """Puts the components on the page, within a `gr.Blocks`.

    Args:
        settings: limits.
        refine: whether it is looked twice unless the visitor says otherwise.
        seconds_kept: so long a visitor's references and last result are kept.
        inside: returns how many requests are in work.
    """
    gr.Markdown(_INTRO, elem_id="dp-intro")
    status = _own(
        "status", '<p class="dp-line"><span role="status"></span> <span class="dp-clock"></span></p>', inside=inside
    )
    with gr.Row(elem_id="dp-columns"):
        with gr.Column(scale=4, min_width=320):
            asking = _asking(settings, refine)
        with gr.Column(scale=6, min_width=320):
            showing = _showing()
    references = gr.State((), time_to_live=seconds_kept)
    kept = gr.State(None, time_to_live=seconds_kept)
    return Parts(asking, showing, status, references, kept)


def _asking(settings: ServeSettings, refine: bool) -> Asking:
    limit = f"up to {settings.max_megapixels:g} megapixels and {settings.max_body_mb:g} MB"
    photo = gr.Image(
        label=f"Photo, {limit}", type="filepath", sources=["upload", "clipboard"], height=260, elem_id="dp-photo"
    )
    photo.preprocess = _path_of  # a broken file is a bare exception of Gradio's own
    names = gr.Textbox(
        label=f"Names, up to {settings.max_names}",
        info=_NAMES_HELP,
        placeholder="cat\nwall\ncouch = sofa",
        lines=4,
        max_lines=10,
        elem_id="dp-names",
    )
    with gr.Row():
        add = gr.Dropdown(list(suggestions()), value=None, label="Add a name", min_width=140, elem_id="dp-add")
        vocabulary = gr.Dropdown(
            offered_vocabularies(settings.max_names),
            value=None,
            label="Or a vocabulary",
            min_width=140,
            elem_id="dp-vocabulary",
        )
    suggest = gr.Button("Suggest names from the photo", size="sm", elem_id="dp-suggest")
    run = gr.Button("Segment", variant="primary", elem_id="dp-run")
    with gr.Accordion("Reference pictures", open=False):
        gr.Markdown("Show what you mean: choose a picture, mark the thing in it (or nothing: all of it), say its name.")
        marker = _own("marker", asset("marker.html"), choose=True)
        marked_class = gr.Dropdown([], value=None, label="It shows", allow_custom_value=True, elem_id="dp-marked-class")
        add_reference = gr.Button("Add as reference", size="sm", elem_id="dp-add-reference")
        reference_list = _own("references", '<ul class="dp-references"></ul>')
    with gr.Accordion("Options", open=False):
        twice = gr.Checkbox(
            refine, label="Look twice", info="Inference II: what was found is cut out and looked for again."
        )
        background = gr.Slider(
            0, 1, 0, step=0.05, label="Leave pixels without a name below this score", info="0: every pixel gets a name."
        )
    return Asking(
        photo,
        names,
        add,
        vocabulary,
        suggest,
        marker,
        marked_class,
        add_reference,
        reference_list,
        twice,
        background,
        run,
    )


def _path_of(payload: object) -> str | None:
    """Returns the path of an uploaded file, which is checked later, as the API's are."""
    return getattr(payload, "path", None)


def _showing() -> Showing:
    with gr.Tabs(elem_id="dp-tabs") as tabs:
        with gr.Tab("Result", id="result"):
            viewer = _own("viewer", asset("viewer.html"))
            with gr.Row(elem_id="dp-downloads"):
                downloads = {
                    kind: gr.Button(_DOWNLOAD_LABELS[kind], size="sm", min_width=70, elem_id=f"dp-download-{kind}")
                    for kind in DOWNLOADS
                }
            download = _own("download", "")
        with gr.Tab("Compare", id="compare"):
            choices = [(_COMPARE_LABELS[kind], kind) for kind in COMPARISONS]
            comparison = gr.Radio(choices, value="refinement", label="What", elem_id="dp-comparison")
            compare = gr.Button("Compare", size="sm", elem_id="dp-compare")
            slider = gr.ImageSlider(
                label="Left and right", type="pil", format="jpeg", interactive=False, max_height=700
            )
            position = gr.Slider(0, 100, 50, step=1, label="Where the handle is, in per cent", elem_id="dp-position")
        with gr.Tab("Correct", id="correct"):
            fixer = _own("marker", asset("marker.html"), elem_id="dp-fixer", choose=False)
            fixed_class = gr.Dropdown([], value=None, label="This is", elem_id="dp-fixed-class")
            as_reference = gr.Checkbox(True, label="Also use it as a reference for the next photos")
            correct = gr.Button("Correct", size="sm", elem_id="dp-correct")
    return Showing(
        tabs,
        viewer,
        downloads,
        download,
        comparison,
        compare,
        slider,
        position,
        fixer,
        fixed_class,
        as_reference,
        correct,
    )


def _own(
    name: str,
    html: str,
    elem_id: str | None = None,
    choose: bool | None = None,
    inside: Callable[[], int] | None = None,
) -> gr.HTML:
    """Returns a component of ours: `html`, and the script of that name in `assets`.

    Args:
        name: of the script.
        html: what it works on.
        elem_id: None: made of the name.
        choose: for `marker`, whether the visitor chooses the picture.
        inside: for `status`, what it asks the server.
    """
    return gr.HTML(
        None,
        html_template=html,
        js_on_load=asset(f"{name}.js"),
        apply_default_css=False,
        elem_id=elem_id or f"dp-{name}",
        choose=choose,
        server_functions=None if inside is None else [inside],
    )
