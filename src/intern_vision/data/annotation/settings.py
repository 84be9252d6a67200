"""Settings of active annotation."""

from typing import Literal

from pydantic import Field

from intern_vision.config import Config


class PictureConfig(Config):
    """How tasks refer to images.

    ``embedded`` puts each picture into its task as a JPEG of bounded size: the server reads nothing else, and nothing
    of the file's name is shown. ``presigned`` gives addresses of ``s3://`` images that whoever has them can read until
    they expire. ``local_files`` gives paths below a folder that the server was told to serve, to every user of it.

    Attributes:
        kind: one of the three.
        max_side_px: longer side of an embedded picture.
        expires_s: how long a presigned address is valid; a week is the most that S3 signs for.
        root: for ``local_files`` the folder that ``LOCAL_FILES_DOCUMENT_ROOT`` of the server names, absolute.
    """

    kind: Literal["embedded", "presigned", "local_files"] = "embedded"
    max_side_px: int = Field(default=1024, ge=16)
    expires_s: int = Field(default=3 * 86_400, ge=60, le=7 * 86_400)
    root: str = ""

    def faults(self) -> list[str]:
        """Local files need their root, and nothing else does."""
        if (self.kind == "local_files") != self.root.startswith("/"):
            return ["root must be an absolute folder for local_files, and empty for the other kinds"]
        return []


class SelectionConfig(Config):
    """Which images people are asked about.

    Attributes:
        num_tasks: images to ask about, audits not counted.
        audit_share: audits (images whose answer is known) for each task, mixed in.
        measure: of how unsure the model is: ``margin`` or ``entropy``; boxes have their own.
        breadth: images looked at for each one taken; more gives more weight to diversity.
        max_loss: share of the labelled images that each detector of outsiders may take for one.
        max_labelled: labelled images that the detectors learn from; of more, a seeded draw.
        num_copies: copies of each kind that are made of a labelled image.
        sources: only pool rows of these sources; empty for all.
        head: name of the model's head that proposes; ``auto``: the one of the question's family that names all
            labels; ``probe``: a ridge probe on the labelled rows.
        min_score: boxes below it are not proposed.
        seed: of every draw.
    """

    num_tasks: int = Field(default=500, ge=1)
    audit_share: float = Field(default=0.1, ge=0, le=1)
    measure: Literal["margin", "entropy"] = "margin"
    breadth: float = Field(default=4.0, ge=1)
    max_loss: float = Field(default=0.05, gt=0, lt=1)
    max_labelled: int = Field(default=5_000, ge=4)
    num_copies: int = Field(default=1, ge=1)
    sources: tuple[str, ...] = ()
    head: str = "auto"
    min_score: float = Field(default=0.3, ge=0, le=1)
    seed: int = 0


class VoteConfig(Config):
    """When answers count.

    Attributes:
        num_votes: equal votes that decide, where nobody disagrees; a disagreement needs one vote more.
        min_audits: audits that an annotator has answered before being judged by them.
        min_accuracy: share of right audits below which an annotator's votes are left out.
        min_iou: overlap from which two boxes of one label are the same box.
    """

    num_votes: int = Field(default=2, ge=1)
    min_audits: int = Field(default=5, ge=1)
    min_accuracy: float = Field(default=0.8, ge=0, le=1)
    min_iou: float = Field(default=0.5, gt=0, le=1)


class AnswerFile(Config):
    """A JSON export of Label Studio.

    Attributes:
        uri: its ``file://`` or ``s3://`` address.
        sha256: its digest, so that other answers are another step.
    """

    uri: str
    sha256: str = Field(min_length=64, max_length=64)
