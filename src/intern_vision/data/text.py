"""Captions to token ids: a byte-level BPE trained on the run's own captions or CLIP's, and EDA caption augmentation."""

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import ConfigError, DataError

_PAD, _MASK, _START, _END = "<pad>", "<mask>", "<start>", "<end>"
# All 256 bytes must have a token, so that any text can be encoded.
_MIN_VOCAB_SIZE = 256 + 4
_CHANGED_WORD_SHARE = 0.1
# CLIP's words (arXiv 2103.00020, section 2.4, and the published tokenizer): letters, single digits, runs of signs.
_CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_WORD_END = "</w>"
# The published list unpacked is 3 MB.
_MAX_MERGES_BYTES = 16 * 2**20


class Tokenizer:
    """Lower-casing byte-level BPE with padding id 0 and end-of-text as the largest id.

    The ids keep the order of DeCLIP's vocabulary: mask before start and end, because the
    text encoder finds the end of a caption as the arg-max over its ids.
    """

    def __init__(self, bpe: Any) -> None:
        """Wraps a ``tokenizers.Tokenizer`` made by ``train``; use ``train`` or ``load``."""
        # A caption that spells a special token must not produce its id. Not part of the saved file.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size()
        self.pad_id: int = bpe.token_to_id(_PAD)
        self.mask_id: int = bpe.token_to_id(_MASK)
        self.start_id: int = bpe.token_to_id(_START)
        self.end_id: int = bpe.token_to_id(_END)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Self:
        """Learns merges from captions; few or short captions give fewer than ``vocab_size`` ids.

        Raises:
            ConfigError: ``vocab_size`` has no room for the 256 bytes and 4 special tokens.
        """
        if vocab_size < _MIN_VOCAB_SIZE:
            raise ConfigError(f"vocab_size: expected at least {_MIN_VOCAB_SIZE}, got {vocab_size}")
        from tokenizers import Tokenizer as Bpe
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        bpe = Bpe(models.BPE())
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 3,
            special_tokens=[_PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(captions, trainer)
        bpe.add_special_tokens([_MASK, _START, _END])
        return cls(bpe)

    @classmethod
    def from_clip(cls, path: Path, vocab_size: int) -> Self:
        """CLIP's vocabulary; its words have an id one larger than there, because 0 is padding here.

        Texts are lower-cased and their white space is joined, as there; its repair of wrongly decoded texts (ftfy) and
        of HTML entities is left to whoever wrote the captions.

        Args:
            path: the list of merges that CLIP was published with (``bpe_simple_vocab_16e6.txt`` or its ``.gz``): a
                line that names the version, then two pieces a line.
            vocab_size: ids of the text tower that it is for, four special ones included.

        Raises:
            DataError: the file cannot be read, is too long or too short, or a line is no merge.
        """
        from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Bpe

        letters = _byte_letters()
        pieces = [_PAD, *letters, *(letter + _CLIP_WORD_END for letter in letters)]
        num_merges = vocab_size - len(pieces) - 3
        if num_merges < 0:
            raise DataError(f"vocab_size: CLIP's bytes alone take {vocab_size - num_merges} ids, got {vocab_size}")
        merges = _read_merges(path, num_merges, pieces)
        bpe = Bpe(
            models.BPE(
                vocab={piece: number for number, piece in enumerate(pieces)},
                merges=merges,
                end_of_word_suffix=_CLIP_WORD_END,
            )
        )
        bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        # The letter that stands for the byte of a space.
        bpe.decoder = decoders.Sequence([decoders.Replace(_CLIP_WORD_END, "\u0120"), decoders.ByteLevel()])
        bpe.add_special_tokens([_PAD, _MASK, _START, _END])
        return cls(bpe)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote; DataError where the file is missing or something else."""
        from tokenizers import Tokenizer as Bpe

        try:
            return cls(Bpe.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path}: not a tokenizer file ({error})") from error

    def save(self, path: Path) -> None:
        """Writes one JSON file."""
        path.write_text(self._bpe.to_str(pretty=False), encoding="utf-8")

    def encode(self, caption: str, context_length: int) -> NDArray[np.int64]:
        """Ids of start, caption (cut to fit), end and padding.

        Args:
            caption: any text; may be empty.
            context_length: length of the result, at least 2.

        Returns:
            ``(context_length,)`` int64.
        """
        ids = self._bpe.encode(caption, add_special_tokens=False).ids[: context_length - 2]
        tokens = np.full(context_length, self.pad_id, np.int64)
        tokens[0] = self.start_id
        tokens[1 : len(ids) + 1] = ids
        tokens[len(ids) + 1] = self.end_id
        return tokens

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of the ids, without the special ones."""
        specials = {self.pad_id, self.mask_id, self.start_id, self.end_id}
        return self._bpe.decode([int(token) for token in tokens if token not in specials]).strip()


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in lists of merges, printable bytes first, as CLIP counts them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + number) for number in range(256 - len(printable))]


def _read_merges(path: Path, num_merges: int, pieces: list[str]) -> list[tuple[str, str]]:
    """The first merges of a file, best first; what each makes is added to ``pieces``."""
    advice = "give the list that the model was trained with (CLIP: bpe_simple_vocab_16e6.txt.gz)"
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if is_packed else file).read(_MAX_MERGES_BYTES + 1)
        text = content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of merges ({error}); {advice}") from None
    if len(content) > _MAX_MERGES_BYTES:
        raise DataError(f"{path}: more than {_MAX_MERGES_BYTES >> 20} MiB of text; {advice}")
    lines = text.rstrip().split("\n")[1 : num_merges + 1]
    known, merges = set(pieces), []
    for number, line in enumerate(lines, 2):
        parts = tuple(line.split())
        if len(parts) != 2 or not known.issuperset(parts) or "".join(parts) in known:
            raise DataError(
                f"{path}: line {number}: expected two known pieces of a new one, got {line[:60]!r}; {advice}"
            )
        merges.append(parts)
        known.add("".join(parts))
        pieces.append("".join(parts))
    if len(merges) < num_merges:
        raise DataError(f"{path}: {len(merges)} merges, and the text tower has ids for {num_merges}; {advice}")
    return merges


def mask_tokens(
    tokens_L: NDArray[np.int64], rng: np.random.Generator, *, mask_id: int, share: float = 0.15
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """BERT's corruption: of the chosen tokens 80 % become the mask, 10 % a random token, 10 % stay (arXiv 1810.04805).

    Args:
        tokens_L: ids of one caption; 0 is padding.
        rng: source of every choice.
        mask_id: id of the mask token; it and the larger ones (start, end) are never chosen and never put in.
        share: probability of a token's being chosen, in [0, 1].

    Returns:
        The corrupted ids and the targets, -100 where no prediction is asked; both ``(L,)`` int64.
    """
    dice_2L = rng.random((2, len(tokens_L)))
    chosen_L = (tokens_L > 0) & (tokens_L < mask_id) & (dice_2L[0] < share)
    corrupted_L = np.where(chosen_L & (dice_2L[1] < 0.8), mask_id, tokens_L)
    is_random_L = chosen_L & (dice_2L[1] >= 0.9)
    # The upper tenth of the dice is itself uniform, so it also draws the token.
    random_L = 1 + ((dice_2L[1] - 0.9) * (10 * (mask_id - 1))).astype(np.int64).clip(0, mask_id - 2)
    return np.where(is_random_L, random_L, corrupted_L), np.where(chosen_L, tokens_L, -100)


def augment_caption(
    words: Sequence[str], rng: np.random.Generator, synonyms: Mapping[str, str | Sequence[str]] | None = None
) -> list[str]:
    """One of synonym replacement, random swap and random deletion (EDA, arXiv 1901.11196; as used by DeCLIP).

    About a tenth of the words is changed, at least one. Where no word has a synonym, words are swapped.

    Args:
        words: the caption's words.
        rng: source of every choice.
        synonyms: lower-case word to its alternative or alternatives.

    Returns:
        At least one word, unless ``words`` is empty.
    """
    changed = list(words)
    if len(changed) < 2 and not synonyms:
        return changed
    num_changes = max(1, round(_CHANGED_WORD_SHARE * len(changed)))
    choice = int(rng.integers(3))
    if choice == 0:
        known = [place for place, word in enumerate(changed) if (synonyms or {}).get(word.lower())]
        if known:
            for place in rng.permutation(known)[:num_changes]:
                options = (synonyms or {})[changed[place].lower()]
                changed[place] = options if isinstance(options, str) else options[int(rng.integers(len(options)))]
            return changed
    if len(changed) < 2:
        return changed
    if choice == 2:
        dropped = set(rng.permutation(len(changed))[: min(num_changes, len(changed) - 1)].tolist())
        return [word for place, word in enumerate(changed) if place not in dropped]
    for _ in range(num_changes):
        first, second = rng.choice(len(changed), 2, replace=False)
        changed[first], changed[second] = changed[second], changed[first]
    return changed
