"""What a page is made of: frozen data, free of HTML. The template has one block for each kind of section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from robustmim.report.figures import BarPlot, LinePlot

Level = Literal["red", "amber", "green"]


@dataclass(frozen=True)
class Share:
    """An accuracy with its 95 % interval, all in [0, 1], and the counts behind it.

    Of a random defence, an image counts with the share of the draws in which it is right, so `correct` may be a fraction.
    """

    accuracy: float
    low: float
    high: float
    correct: float
    n: int


@dataclass(frozen=True)
class Headline:
    """One of the large numbers at the top."""

    label: str
    share: Share
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """What a reader must know before quoting a number."""

    level: Level
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The box at the top: what was measured, the numbers that matter, and what must be said with them."""

    kind: ClassVar[str] = "verdict"
    title: str
    facts: tuple[tuple[str, str], ...]
    headlines: tuple[Headline, ...]
    findings: tuple[Finding, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One image of a grid.

    Args:
        source: data URI.
        caption: the name of its column: "Attacked".
        text: what a reader who cannot see it is told.
        answer: what the classifier said; empty where it was not asked.
        right: whether the answer is right.
    """

    source: str
    caption: str
    text: str
    answer: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class PictureRow:
    """The pictures of one sample, under its true label."""

    label: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ImageGrid:
    """Rows of pictures; a click enlarges one. `pixelated` keeps the pixels of small images square."""

    kind: ClassVar[str] = "images"
    title: str
    rows: tuple[PictureRow, ...]
    lead: str = ""
    caption: str = ""
    pixelated: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts side by side, with a sentence on how to read them."""

    kind: ClassVar[str] = "charts"
    title: str
    plots: tuple[LinePlot | BarPlot, ...]
    lead: str = ""
    caption: str = ""


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies by budget (rows) and defence (columns)."""

    kind: ClassVar[str] = "table"
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Share | None, ...]], ...]
    lead: str = ""


@dataclass(frozen=True)
class Facts:
    """Named values, each a short text."""

    kind: ClassVar[str] = "facts"
    title: str
    items: tuple[tuple[str, str], ...]
    lead: str = ""
    tiles: bool = False


@dataclass(frozen=True)
class Prose:
    """Paragraphs, parted by blank lines. Without text it is the heading of a part of the page."""

    kind: ClassVar[str] = "prose"
    title: str
    text: str


@dataclass(frozen=True)
class Details:
    """Texts to copy (command, recipe), as (name, text): the first `open` ones are unfolded."""

    kind: ClassVar[str] = "details"
    title: str
    items: tuple[tuple[str, str], ...]
    open: int = 1


@dataclass(frozen=True)
class Notice:
    """A band across the page: the run is going, was stopped or has failed."""

    kind: ClassVar[str] = "notice"
    title: str
    text: str
    level: Level = "amber"


Section = Verdict | ImageGrid | Charts | AccuracyTable | Facts | Prose | Details | Notice
