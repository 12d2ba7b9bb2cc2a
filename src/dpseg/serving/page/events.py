"""What happens when somebody uses the page."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any, Literal, TypeAlias

import gradio as gr
from starlette.concurrency import run_in_threadpool

from dpseg.data.vocabularies import load_vocabulary
from dpseg.errors import PromptError
from dpseg.prompts.text import parse_class
from dpseg.serving.page import work
from dpseg.serving.page.kept import KeptResult, PageReference, mask_file
from dpseg.serving.page.layout import Parts
from dpseg.serving.page.messages import Update, message, told, working
from dpseg.serving.page.names import add_names, shown_names, write_names
from dpseg.serving.page.view import photo_uri, view_of
from dpseg.serving.problems import RequestError
from dpseg.serving.service import Service

References: TypeAlias = tuple[PageReference, ...]

SUGGESTED = 12
"""So many names at most are suggested from a photo."""

SUGGESTED_AREA = 0.005
"""Names of a smaller share of the photo are not suggested."""

SUGGEST_FROM = "coco"
"""The vocabulary of these."""


class Events:
    """Connects the page's parts with a service."""

    def __init__(self, parts: Parts, service: Service) -> None:
        self.parts, self.service = parts, service
        self.asking, self.showing = parts.asking, parts.showing

    def connect(self) -> None:
        """Says what each part does, within the page's `gr.Blocks`."""
        a, s, p = self.asking, self.showing, self.parts
        task = [a.photo, a.names, p.references, a.refine, a.background]
        shown = [p.status, s.viewer, p.kept, s.fixer, s.fixed_class, s.slider, s.tabs]
        # Gradio's own queue would forget what is queued just when the event before it ends; ours is the service's.
        quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        for trigger in (a.run.click, a.names.submit):
            trigger(None, None, p.status, js=working("Looking for these names"), show_progress="hidden")
            trigger(self.run, task, shown, **quick)
        a.suggest.click(None, None, p.status, js=working("Looking at what there is"), show_progress="hidden")
        a.suggest.click(self.suggest, [a.photo, a.names], [p.status, a.names], **quick)
        s.compare.click(None, None, p.status, js=working("Looking in both ways"), show_progress="hidden")
        s.compare.click(self.compare, [s.comparison, p.kept], [p.status, s.slider], **quick)
        a.names.change(self.offer, [a.names], [p.status, a.marked_class], **quick)
        a.add.input(self.add, [a.names, a.add], [p.status, a.names, a.add], **quick)
        a.vocabulary.input(self.fill, [a.vocabulary], [p.status, a.names, a.vocabulary], **quick)
        told_of = [p.status, p.references, a.reference_list, a.marker]
        a.add_reference.click(self.add_reference, [a.marker, a.marked_class, p.references], told_of, **quick)
        a.reference_list.remove(self.remove_reference, [p.references], told_of, **quick)
        s.position.input(self.move, [s.position], [p.status, s.slider], trigger_mode="always_last", **quick)
        fix = [s.fixer, s.fixed_class, s.as_reference, p.kept, p.references]
        fixed = [p.status, s.viewer, p.kept, s.fixer, p.references, a.reference_list, s.tabs]
        s.correct.click(self.correct, fix, fixed, **quick)
        for kind, button in s.downloads.items():
            button.click(partial(self.download, kind), [p.kept], [p.status, s.download], **quick)

    def say(self, kind: Literal["done", "error"], text: str) -> Update:
        """Returns the update that shows a message."""
        return {self.parts.status: message(kind, text)}

    @told
    async def run(
        self,
        photo: str | None,
        names: str,
        references: References,
        refine: bool,
        background: float,
        request: gr.Request,
    ) -> Update:
        """Segments the photo."""
        with self.service.door.enter(_address(request)):
            data = await work.read_photo(self.service, photo)
            asked = await run_in_threadpool(work.ask, self.service, names, references)
            task = work.Task(str(photo), names, references, refine, background)
            kept, view = await work.segment(self.service, asked, data, task)
        return self.say("done", _found(view)) | {
            self.showing.viewer: view,
            self.parts.kept: kept,
            self.showing.fixer: {"picture": view["photo"], "mask": None},
            self.showing.fixed_class: gr.Dropdown(choices=list(kept.names), value=None),
            self.showing.slider: None,
            self.showing.tabs: gr.Tabs(selected="result"),
        }

    @told
    async def suggest(self, photo: str | None, names: str, request: gr.Request) -> Update:
        """Adds names of what a first look finds in the photo."""
        with self.service.door.enter(_address(request)):
            data = await work.read_photo(self.service, photo)
            vocabulary = write_names(load_vocabulary(SUGGEST_FROM)[: self.service.settings.max_names])
            asked = await run_in_threadpool(work.ask, self.service, vocabulary, ())
            _, view = await work.segment(self.service, asked, data, work.Task(str(photo), vocabulary))
        found = [entry["name"] for entry in view["entries"][:SUGGESTED] if entry["area"] >= SUGGESTED_AREA]
        return self.say("done", f"Suggested {', '.join(found) or 'nothing'}") | {
            self.asking.names: add_names(names, found)
        }

    @told
    async def compare(self, kind: str, kept: KeptResult | None, request: gr.Request) -> Update:
        """Shows two ways beside each other."""
        result = _there(kept)
        left, right = work.COMPARISONS[kind]
        with self.service.door.enter(_address(request)):
            sides = await work.compare(self.service, result, kind)
        label = f"Left {left}, right {right}"
        same = kind == "refinement" and sides[0].tobytes() == sides[1].tobytes()
        why = "both are the same, for nothing was certain enough to be looked at again" if same else "move the handle"
        return self.say("done", f"{label}; {why}") | {self.showing.slider: gr.ImageSlider(sides, label=label)}

    @told
    async def move(self, position: float) -> Update:
        """Moves the handle between the two: Gradio's own cannot be reached by the keyboard."""
        return {self.showing.slider: gr.ImageSlider(slider_position=position)}

    @told
    async def offer(self, names: str) -> Update:
        """Offers the names for references."""
        return {self.asking.marked_class: gr.Dropdown(choices=shown_names(names))}

    @told
    async def add(self, names: str, name: str | None) -> Update:
        """Adds a name that was chosen."""
        more = {self.asking.names: add_names(names, [name])} if name else {}
        return more | {self.asking.add: None}

    @told
    async def fill(self, vocabulary: str | None) -> Update:
        """Takes all names of a vocabulary."""
        names = {self.asking.names: write_names(load_vocabulary(vocabulary))} if vocabulary else {}
        return names | {self.asking.vocabulary: None}

    @told
    async def add_reference(self, marked: object, name: str | None, references: References) -> Update:
        """Adds the picture that was marked."""
        if not name or not name.strip():
            raise PromptError("say what the picture shows: choose or write a name below it")
        picture, mask = await run_in_threadpool(work.read_marked, marked, self.service)
        one = PageReference(parse_class(name).name, picture, None if mask is None else mask_file(mask))
        return self._with(references, one) | {self.asking.marker: None}

    @told
    async def remove_reference(self, references: References, event: gr.EventData) -> Update:
        """Removes one of the list."""
        index = int(event.index)
        left = references[:index] + references[index + 1 :]
        return self.say("done", "Removed the reference") | self._listed(left)

    @told
    async def correct(
        self, marked: object, name: str | None, also: bool, kept: KeptResult | None, references: References
    ) -> Update:
        """Gives the marked region a class, and makes a reference of it."""
        result = _there(kept)
        if not name:
            raise PromptError("say what the region is: choose a name below the picture")
        _, mask = await run_in_threadpool(work.read_marked, marked, self.service)
        if mask is None:
            raise PromptError("nothing is marked; paint over the region, or draw a box around it")
        fixed = await run_in_threadpool(result.corrected, mask, name)
        whole = await run_in_threadpool(fixed.segmentation)
        assert whole.image is not None
        update = self.say("done", f"The region is {name} now")
        if also:
            update = self._with(references, await run_in_threadpool(result.reference, mask, name))
            update |= self.say("done", f"The region is {name} now, and a reference for the next photos")
        return update | {
            self.showing.viewer: await run_in_threadpool(view_of, whole),
            self.parts.kept: fixed,
            self.showing.fixer: {"picture": photo_uri(whole.image), "mask": None},
            self.showing.tabs: gr.Tabs(selected="result"),
        }

    @told
    async def download(self, kind: str, kept: KeptResult | None) -> Update:
        """Hands the browser a file."""
        name, media, data = await run_in_threadpool(_there(kept).download, kind)
        content = base64.b64encode(data).decode("ascii")
        file = {"name": name, "media": media, "content": content}
        return self.say("done", f"Downloaded {name}") | {self.showing.download: file}

    def _with(self, references: References, one: PageReference) -> Update:
        limit = self.service.settings.max_references
        if len(references) >= limit:
            raise RequestError(422, f"{limit} reference pictures, the limit; remove one first")
        return self.say("done", f"Added a reference for {one.name}") | self._listed((*references, one))

    def _listed(self, references: References) -> Update:
        return {self.parts.references: references, self.asking.reference_list: work.thumbnails(references)}


def _there(kept: KeptResult | None) -> KeptResult:
    if kept is None:
        raise PromptError("no result yet, or no longer; press Segment first")
    return kept


def _address(request: gr.Request) -> str:
    return request.client.host if request.client is not None else ""


def _found(view: dict[str, Any]) -> str:
    shown = [f"{entry['name']} {_percent(entry['area'])}" for entry in view["entries"][:5]]
    more = len(view["entries"]) - len(shown)
    return "Found " + (", ".join(shown) or "nothing") + (f" and {more} more" if more > 0 else "")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "below 1%"
