"""Sets of videos as classification of one frame each: the middle one, whose index a sample keeps.

GV-B says "frame" and not which; a key is the video's path, so that a draw of samples is one of videos.
"""

from pathlib import Path

from intern_vision.data.codec import encode_jpeg
from intern_vision.data.official.layout import (
    OfficialCopy,
    OfficialReading,
    Picture,
    classify_reading,
    plain_name,
)
from intern_vision.data.reading import Item, SplitRule
from intern_vision.data.sample import Split

_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


def read_ucf101(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """UCF101, split 1: ``trainlist01.txt`` and ``testlist01.txt`` hold paths that begin with the class."""
    folder = copy.need("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist").name
    lists = copy.below(folder, f"UCF101TrainTestSplits-RecognitionTask/{folder}")
    names = [row[1] for row in lists.rows(lists.need("classInd.txt"), 2)]
    indices = {name: index for index, name in enumerate(names)}
    splits: tuple[Split, ...] = ("train", "test")
    items = []
    for split in splits:
        source = lists.need(f"{split}list01.txt")
        for row in copy.rows(source):
            with copy.parsing(source):
                label = indices[row[0].split("/")[0]]
            items.append(copy.item(copy.inside(f"UCF-101/{row[0]}", source), split, label))
    return _frames(copy, items, [_words(name) for name in names])


def read_kinetics700(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Kinetics-700: tables of label, video id and times; the validation videos are scored.

    A video lies anywhere below its split's folder as ``<id>_<start>_<end>.<suffix>`` with times of six digits. One that
    is not there, as many are gone, is quarantined with its id as the reason.
    """
    copy = copy.below("kinetics700", "k700-2020", "k700")
    parts: dict[Split, tuple[Path, tuple[str, ...]]] = {
        "train": (copy.need("train.csv", "annotations/train.csv"), ("train",)),
        "test": (copy.need("validate.csv", "val.csv", "annotations/val.csv"), ("val", "validate", "validation")),
    }
    columns = ("label", "youtube_id", "time_start", "time_end")
    tables = {split: list(copy.table(source, columns)) for split, (source, _) in parts.items()}
    names = sorted({row["label"] for rows in tables.values() for row in rows})
    indices = {name: index for index, name in enumerate(names)}
    items = []
    for split, (source, folders) in parts.items():
        folder = copy.need(*folders)
        videos = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _VIDEO_SUFFIXES}
        for row in tables[split]:
            with copy.parsing(source):
                stem = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
            path = videos.get(stem) or copy.inside(f"{folder.name}/{row['label']}/{stem}.mp4", source)
            # The place of a video below its split differs between downloads, so the key is not its path there.
            items.append(copy.item(path, split, indices[row["label"]], key=f"{folders[0]}/{stem}"))
    return _frames(copy, items, names)


def middle_frame(path: Path) -> Picture:
    """The middle frame of a video, with its index.

    Raises:
        FileNotFoundError: there is no such video.
        ValueError: it cannot be decoded.
    """
    import cv2

    if not path.is_file():
        raise FileNotFoundError(f"video {path.name} is missing")
    video = cv2.VideoCapture(str(path))
    try:
        index = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // 2
        video.set(cv2.CAP_PROP_POS_FRAMES, index)
        good, frame = video.read()
    finally:
        video.release()
    if not good or frame is None:
        raise ValueError(f"video {path.name} cannot be decoded at frame {index}")
    image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    # A frame has lost by the video's compression what JPEG of this quality would lose again.
    return Picture(image, encode_jpeg(image), index)


def _frames(copy: OfficialCopy, items: list[Item], class_names: list[str]) -> OfficialReading:
    return classify_reading(copy, items, class_names, lambda item: middle_frame(item.path))


def _words(name: str) -> str:
    """``ApplyEyeMakeup`` as ``apply eye makeup``; underscores become blanks too."""
    spaced = "".join(f" {letter}" if letter.isupper() and index else letter for index, letter in enumerate(name))
    return plain_name(spaced).lower()
