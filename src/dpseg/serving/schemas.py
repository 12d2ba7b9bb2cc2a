"""What requests and answers hold, as OpenAPI shows them and as requests are checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

AnswerFormat = Literal["json", "png"]

_Pixels = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]


class _Strict(BaseModel):
    """Unknown fields are refused: a misspelt one would be passed over in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ReferenceBody(_Strict):
    """A picture of a class, and where in it the thing is: a mask, a box, or (with neither) the whole picture."""

    name: str = Field(alias="class", description="A class, by any of its names.", examples=["mug"])
    picture: str = Field(description="File name of one of `files`.", examples=["shelf.jpg"])
    mask: str | None = Field(
        None, description="File name of one of `files`: a picture of the same size, not 0 on the thing."
    )
    box: tuple[_Pixels, _Pixels, _Pixels, _Pixels] | None = Field(
        None,
        description="x0, y0, x1, y1 in pixels of the picture, x1 and y1 exclusive.",
        examples=[[120, 40, 260, 210]],
    )


class PromptsBody(_Strict):
    """What to look for: words, pictures, or both."""

    classes: list[str] | None = Field(
        None,
        description="One text a class, synonyms after commas. Without it, the classes are those of `references`.",
        examples=[["cat", "couch, sofa"]],
    )
    references: list[ReferenceBody] = Field([], description="Pictures of some or all of the classes.")
    bank: bool = Field(True, description="Give words without pictures those of the server's bank.")
    context: Literal["keep", "blur", "mean"] = Field(
        "keep", description="What surrounds the thing in a picture with a mask or box: kept, blurred, or mean colour."
    )


class SegmentBody(_Strict):
    """The plain fields of POST /v1/segment."""

    prompts_id: str | None = None
    refine: bool | None = None
    background: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    format: AnswerFormat | None = None


class RunLengths(BaseModel):
    """A mask in COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="Height and width in pixels.")
    counts: str


class FoundClass(BaseModel):
    """A class that was found in the photo."""

    name: str
    index: int = Field(description="Its place among `names`, and its value in the PNG.")
    area: float = Field(description="Share of the photo, above 0 to 1.")
    pixels: int
    confidence: float = Field(description="Mean score over its pixels, 0 to 1.")
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels.")
    segmentation: RunLengths
    color: tuple[int, int, int] = Field(description="RGB, as in the PNG's palette.")
    prompts: list[str] = Field(description='Where its prompts came from, e.g. "text" and "reference".')


class SegmentAnswer(BaseModel):
    """A photo's segmentation; the largest class comes first."""

    width: int
    height: int
    classes: list[FoundClass]
    none: float = Field(description="Share of the photo without a class, 0 to 1.")
    names: list[str] = Field(description="All classes that were looked for.")
    dpseg: str = Field(description="Version.")


class PromptsAnswer(BaseModel):
    """A prompt set that the server keeps."""

    id: str = Field(description="What `prompts_id` of POST /v1/segment takes.")
    names: list[str]
    sources: list[list[str]] = Field(description='For each class, e.g. ["text", "reference"].')


class State(BaseModel):
    """Whether the server works."""

    status: Literal["ok"]


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="One sentence: what is wrong, and what to do.")
