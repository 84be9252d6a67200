"""CLIP's byte-pair encoding in plain loops, and a small list of merges in the published format."""

import gzip
import re
from pathlib import Path

WORDS = ("a photo of the small red cup, cups and cats; don't they've 42 lemons!? größe " * 4).split()


def byte_letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + number)
    return letters


def split_words(text):
    """Letters, single digits and runs of other signs, and English endings; lower case."""
    word = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+"
    return re.findall(word, text.lower())


def merged(word, ranks):
    """The pieces of a word: the best pair of neighbours is joined until none is left."""
    letters = byte_letters()
    pieces = [letters[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, index = [], 0
        while index < len(pieces):
            if tuple(pieces[index : index + 2]) == best:
                joined.append("".join(best))
                index += 2
            else:
                joined.append(pieces[index])
                index += 1
        pieces = joined
    return pieces


def learned_merges(num_merges):
    """Pairs in the order of their frequency in ``WORDS``, learned one after the other."""
    merges = []
    for _ in range(num_merges):
        ranks = {pair: rank for rank, pair in enumerate(merges)}
        counts = {}
        for word in (part for text in WORDS for part in split_words(text)):
            pieces = merged(word, ranks)
            for pair in zip(pieces, pieces[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
    return merges


def write_vocabulary(path: Path, num_merges: int):
    """The file as CLIP's: a line with the version, the merges, and more of them than a model may use."""
    merges = learned_merges(num_merges + 2)
    text = "\n".join(['"tiny#version: 0.2', *(" ".join(pair) for pair in merges)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return merges[:num_merges]


def clip_ids(text, merges):
    """CLIP's own ids, without start and end."""
    letters = list(byte_letters().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return [numbers[piece] for word in split_words(text) for piece in merged(word, ranks)]
