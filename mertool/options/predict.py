"""Options of the stage `predict`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mertool.options import shared
from mertool.options.option import Options, option

# The year of the challenge, and the columns of its form.
SUBMISSIONS = {
    "mer2023": "name,discrete,valence",
    "mer2024": "name,discrete",
    "mer2025": "name,discrete",
    "mer2026": "name,discrete",
}


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Options of a prediction; the bundle fixes everything that changes its values."""

    asr: str | None = option(
        None, help="Whisper model that transcribes clips without a transcript, such as whisper-large-v3."
    )
    language: str | None = shared.language()
    chinese: str | None = shared.chinese()
    vad: bool = shared.vad()
    submission: str | None = option(None, help="Also write the labels in the form of a challenge.", choices=SUBMISSIONS)
    candidates: Path | None = option(
        None, help="CSV with the names of the clips to predict and to submit, such as candidate_20000.csv."
    )
    valence: Path | None = option(
        None, help="Predictions of valence for the submission of MER2023, by a bundle of `fuse --target valence`."
    )
    device: str = shared.device()
    workers: int | None = shared.workers()
    clip_timeout: float = shared.clip_timeout()

    def conflicts(self) -> Iterator[str]:
        yield from shared.recognition_conflicts(self.asr, language=self.language, chinese=self.chinese, vad=self.vad)
        if bool(self.submission) != bool(self.candidates):
            year = self.submission or "mer2024"
            yield f"a submission holds exactly the clips of a list: give --submission {year} --candidates CSV"
        if self.valence and self.submission != "mer2023":
            yield "--valence is for the submission of MER2023: give --submission mer2023 and --candidates CSV, too"
