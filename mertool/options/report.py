"""Options of the stage `report`."""

from dataclasses import dataclass

from mertool.options.option import Options, option


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Options of a report."""

    title: str | None = option(None, help="Heading of the page.", default_help="the names of the runs")
    media: bool = option(
        True,
        help="Show a face, the transcript and the speaker of the clips behind each cell of the confusion matrix; with "
        "--no-media only clip ids and probabilities.",
    )
