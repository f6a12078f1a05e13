"""Options of the stage `predict`."""

from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError, check_choice

SUBMISSIONS = ("mer2024",)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How to run; what is computed is fixed by the bundle.

    asr: a Whisper that recognises what is said in clips without a transcript, for a bundle of given transcripts.
    submission: `mer2024`, its form for exactly the clips that the CSV `candidates` names.
    """

    device: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0
    asr: str | None = None
    submission: str | None = None
    candidates: Path | None = None

    def __post_init__(self) -> None:
        if self.submission:
            check_choice("submission", self.submission, SUBMISSIONS)
        if bool(self.submission) != bool(self.candidates):
            raise MertoolError("a submission is checked against its clips: give --submission mer2024 --candidates CSV")
        if not self.clip_timeout > 0:
            raise MertoolError(f"--clip-timeout {self.clip_timeout:g}: give more than 0 seconds")
