"""The rules that a filter step may apply; free of numpy, so that a step reads its config without loading it."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import ConfigError

Script = Literal[
    "latin", "greek", "cyrillic", "arabic", "hebrew", "devanagari", "thai", "hangul", "cjk", "hiragana", "katakana"
]


class TextRule(Config):
    """Takes out rows whose caption says nothing about the picture.

    Empty captions and those in another script are what DeCLIP refuses (its loader of image-text pairs); shortest and
    longest are those of LAION-400M (arXiv 2111.02114) and CC12M (arXiv 2102.08981), file names are dropped as for
    CLIP's YFCC100M subset (arXiv 2103.00020, section 2.2), repeats as in text corpora (arXiv 2112.11446, A.1.1).

    Attributes:
        rule: ``text``.
        missing: what happens to rows that were never captioned; labelled images need no caption.
        scripts: scripts whose letters count as the target's; none = any.
        max_foreign_share: largest share of letters of other scripts, in [0, 1].
        min_chars: fewest characters.
        min_words: fewest words.
        max_words: most words.
        max_repeated_share: largest share of the words that one phrase of up to three words covers, where it occurs
            three times or more, in (0, 1].
        urls: whether web addresses may occur.
        file_names: whether the caption may be the name of a file, such as ``IMG_0001.jpg``.
        max_rows: rows that may have one caption, digits and case aside; all rows of a more frequent one are taken out
            as boilerplate; 0 = any number.
    """

    rule: Literal["text"] = "text"
    missing: Literal["keep", "remove"] = "keep"
    scripts: tuple[Script, ...] = ("latin",)
    max_foreign_share: float = Field(default=0.0, ge=0, le=1)
    min_chars: int = Field(default=5, ge=1)
    min_words: int = Field(default=1, ge=1)
    max_words: int = Field(default=256, ge=1)
    max_repeated_share: float = Field(default=0.5, gt=0, le=1)
    urls: bool = False
    file_names: bool = False
    max_rows: int = Field(default=100, ge=0)

    def faults(self) -> list[str]:
        """The range must not be empty."""
        return ["min_words must be <= max_words"] if self.min_words > self.max_words else []


class SizeRule(Config):
    """Takes out images that are too small, too large or too long.

    Attributes:
        rule: ``size``.
        min_px: smallest shorter side.
        max_px: largest longer side; 0 = any.
        max_aspect: largest ratio of the longer to the shorter side, at least 1; CC12M takes 2.5.
        min_bytes: smallest encoded file.
        max_bytes: largest encoded file; 0 = any.
    """

    rule: Literal["size"] = "size"
    min_px: int = Field(default=1, ge=1)
    max_px: int = Field(default=0, ge=0)
    max_aspect: float = Field(default=1e9, ge=1)
    min_bytes: int = Field(default=0, ge=0)
    max_bytes: int = Field(default=0, ge=0)


class ScoreRule(Config):
    """Takes out captioned images whose caption is unlike the picture, in the eyes of an amateur's two towers.

    Images without a caption stay. LAION-400M kept cosines from 0.3 on, of CLIP's ViT-B/32; another model has another
    scale, for which a share is the safer choice.

    Attributes:
        rule: ``score``.
        min_similarity: smallest cosine of image and caption, in [-1, 1].
        keep_share: share of the captioned images that stays, the most similar ones, in (0, 1].
    """

    rule: Literal["score"] = "score"
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    keep_share: float | None = Field(default=None, gt=0, le=1)

    def faults(self) -> list[str]:
        """One of the two decides."""
        if (self.min_similarity is None) == (self.keep_share is None):
            return ["give one of min_similarity and keep_share"]
        return []


class CapRule(Config):
    """Takes rows of frequent concepts out until each is left with about as many as the cap (arXiv 2309.16671).

    A row with the concepts C stays where any c of C takes it, each with probability ``min(1, per_concept / n_c)``, n_c
    the number of rows with c. What decides is a digest of seed, key and concept, so neither the order of rows nor
    further sources change the draw of a row.

    Attributes:
        rule: ``cap``.
        per_concept: the cap t; MetaCLIP takes 20,000 for 400 million pairs.
        text: whether concepts are also looked for in captions, as MetaCLIP does; else only in labels and boxes.
        unmatched: what happens to rows without any concept; MetaCLIP removes them.
        seed: which of the possible draws.
    """

    rule: Literal["cap"] = "cap"
    per_concept: int = Field(ge=1)
    text: bool = True
    unmatched: Literal["keep", "remove"] = "keep"
    seed: int = 0


class ShareRule(Config):
    """Takes rows of sources out until each has its share of those that stay; the source that is scarcest keeps all.

    Attributes:
        rule: ``share``.
        sources: share by source, above 0; they are scaled to sum to 1. Rows of other sources stay.
        seed: which of the possible draws.
    """

    rule: Literal["share"] = "share"
    sources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=2)
    seed: int = 0


class ClusterRule(Config):
    """Takes out images that mean the same as another one of their cluster (SemDeDup, arXiv 2303.09540).

    The vectors of the input ``model`` are clustered by k-means. Within a cluster, of two images with a cosine above
    the limit the one nearer to the centroid goes.

    Attributes:
        rule: ``cluster``.
        max_similarity: largest cosine, in [-1, 1].
        num_clusters: 0 = one for about 1,000 images.
        seed: of k-means.
    """

    rule: Literal["cluster"] = "cluster"
    max_similarity: float = Field(default=0.95, ge=-1, le=1)
    num_clusters: int = Field(default=0, ge=0)
    seed: int = 0


Rule = Annotated[
    TextRule | SizeRule | ScoreRule | CapRule | ShareRule | ClusterRule,
    Field(discriminator="rule"),
]
_KINDS = (TextRule, SizeRule, ScoreRule, CapRule, ShareRule, ClusterRule)
RULES = {kind.model_fields["rule"].default: kind for kind in _KINDS}


def parse_rule(text: str) -> Any:
    """A rule from JSON or in short: ``name``, or ``name:field=value,field=value``.

    Raises:
        ConfigError: no such rule or field, or a value out of range.
    """
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"rule: expected a JSON object, got {text[:60]!r} ({error})") from None
    else:
        name, _, settings = text.partition(":")
        values = {"rule": name}
        for setting in settings.split(",") if settings else ():
            field, has_value, value = setting.partition("=")
            if not has_value:
                raise ConfigError(f"rule {name}: expected field=value, got {setting!r}")
            values[field] = _value(value)
    kind = RULES.get(values.get("rule", ""))
    if kind is None:
        raise ConfigError(f"rule: expected one of {', '.join(RULES)}, got {str(values.get('rule', ''))!r}")
    return kind.from_dict(values, at=f"rule {values['rule']}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
