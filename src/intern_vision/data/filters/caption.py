"""Rules on captions and on sizes: what a row itself says is enough."""

import hashlib
import re
import unicodedata
from collections import Counter
from functools import lru_cache

from intern_vision.data.filters.rows import FilterRows
from intern_vision.data.filters.rules import SizeRule, TextRule

_URL = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:com|org|net|info)\b", re.IGNORECASE)
_FILE_NAME = re.compile(
    r"\S+\.(?:jpe?g|png|gif|tiff?|webp|bmp|heic)|(?:img|dscn?|dscf|pict?|image|photo|scan|screenshot)?[\s_-]*[\d_-]+",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d+")
_MAX_PHRASE_WORDS = 3
_MIN_REPEATS = 3
# Letters that belong to no script's alphabet: units and ordinals.
_COMMON = ("micro", "feminine", "masculine", "modifier", "ohm", "kelvin", "angstrom")


def text_faults(rule: TextRule, rows: FilterRows) -> dict[int, str]:
    """Rows whose caption breaks the rule: reason by position."""
    counts: Counter[bytes] = Counter()
    if rule.max_rows:
        counts.update(_boilerplate(row["caption"]) for _, row in rows.rows("caption") if row["caption"])
    found = {}
    for position, row in rows.rows("caption"):
        caption = row["caption"]
        if caption is None:
            fault = "no caption" if rule.missing == "remove" else ""
        else:
            fault = caption_fault(caption, rule)
            if not fault and rule.max_rows and (number := counts[_boilerplate(caption)]) > rule.max_rows:
                fault = f"boilerplate, in {number} rows"
        if fault:
            found[position] = f"text: {fault}"
    return found


def caption_fault(caption: str, rule: TextRule) -> str:
    """What is wrong with a caption by itself, in words; empty where nothing is."""
    text = caption.strip()
    words = text.split()
    if not text:
        return "empty"
    if rule.scripts and (share := _foreign_share(text, rule.scripts)) > rule.max_foreign_share:
        return f"{share:.0%} of the letters are not {' or '.join(rule.scripts)}"
    if not rule.urls and _URL.search(text):
        return "has a web address"
    if not rule.file_names and _FILE_NAME.fullmatch(text):
        return "is the name of a file"
    if len(text) < rule.min_chars:
        return f"{len(text)} characters"
    if not rule.min_words <= len(words) <= rule.max_words:
        return f"{len(words)} words"
    phrase = _repeated(words, rule.max_repeated_share)
    return f"repeats {phrase!r}" if phrase else ""


def size_faults(rule: SizeRule, rows: FilterRows) -> dict[int, str]:
    """Rows whose image breaks the rule: reason by position."""
    found = {}
    for position, row in rows.rows("width_px", "height_px", "num_bytes"):
        width, height, num_bytes = row["width_px"], row["height_px"], row["num_bytes"]
        short, long = min(width, height), max(width, height)
        if short < rule.min_px:
            found[position] = f"size: {width} x {height} px, the shorter side is below {rule.min_px}"
        elif rule.max_px and long > rule.max_px:
            found[position] = f"size: {width} x {height} px, the longer side is above {rule.max_px}"
        elif long > rule.max_aspect * short:
            found[position] = f"size: {width} x {height} px, one side is more than {rule.max_aspect:g} times the other"
        elif num_bytes < rule.min_bytes or (rule.max_bytes and num_bytes > rule.max_bytes):
            found[position] = f"size: {num_bytes} bytes"
    return found


def _boilerplate(caption: str) -> bytes:
    folded = _DIGITS.sub("0", " ".join(caption.casefold().split()))
    return hashlib.blake2b(folded.encode(), digest_size=8).digest()


def _foreign_share(text: str, scripts: tuple[str, ...]) -> float:
    if text.isascii():
        return 0.0 if "latin" in scripts else float(any(map(str.isalpha, text)))
    own = [_script(letter) for letter in text if letter.isalpha()]
    counted = [script for script in own if script not in _COMMON]
    return sum(script not in scripts for script in counted) / max(1, len(counted))


@lru_cache(maxsize=2**14)
def _script(letter: str) -> str:
    # The standard library has no script property; the first word of a letter's name is its script's.
    return unicodedata.name(letter, "unknown").split(" ")[0].split("-")[0].lower()


def _repeated(words: list[str], max_share: float) -> str:
    """The phrase that covers more than a share of the words; empty where none does."""
    folded = [word.casefold().strip(".,;:!?\"'") for word in words]
    for length in range(1, _MAX_PHRASE_WORDS + 1):
        phrases = Counter(tuple(folded[start : start + length]) for start in range(len(folded) - length + 1))
        for phrase, count in phrases.most_common(1):
            if count >= _MIN_REPEATS and count * length > max_share * len(words):
                return " ".join(phrase)
    return ""
