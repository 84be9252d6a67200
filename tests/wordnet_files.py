"""A tiny WordNet in the format of its dictionary files, wndb(5WN)."""

from pathlib import Path

LICENCE = "  1 This software and database is being provided to you, the LICENSEE  \n  2 under the licence.  \n"
# name, words, hypernyms by pointer, gloss
SYNSETS = [
    ("entity", ["entity"], {}, "that which is perceived"),
    ("animal", ["animal", "beast"], {"@": ["entity"]}, "a living organism"),
    ("dog", ["dog", "domestic_dog", "Canis_familiaris"], {"@": ["animal"]}, "a member of the genus Canis"),
    ("frank", ["frank", "hot_dog", "dog"], {"@": ["entity"]}, "a smooth-textured sausage"),
    ("laika", ["Laika"], {"@i": ["dog"], "@": ["animal"]}, "the first dog in space"),
]


def write_wordnet(folder: Path) -> dict[str, str]:
    """The three noun files, with true byte offsets; ids by name."""
    lines, offsets, at = [], {}, len(LICENCE.encode())

    def line(name, words, hypernyms, gloss):
        pointers = [f"{symbol} {offsets.get(t, 0):08d} n 0000" for symbol, ts in hypernyms.items() for t in ts]
        # A pointer to another part of speech and a part-of pointer are no hypernyms.
        pointers += ["+ 00000001 v 0101", "#p 00000002 n 0000"]
        text = " ".join(f"{word} 0" for word in words)
        fields = (f"{offsets.get(name, 0):08d} 03 n {len(words):02x}", text, f"{len(pointers):03d}", *pointers)
        return f"{' '.join(fields)} | {gloss}  \n"

    for name, *rest in SYNSETS:
        offsets[name] = at
        lines.append(line(name, *rest))
        at += len(lines[-1].encode())
    (folder / "data.noun").write_text(LICENCE + "".join(lines))
    index = [
        f"dog n 2 2 @ ~ 2 1 {offsets['dog']:08d} {offsets['frank']:08d}  \n",
        f"hot_dog n 1 1 @ 1 0 {offsets['frank']:08d}  \n",
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(index))
    (folder / "noun.exc").write_text("corpora corpus\nhot_doggies hot_dog hot_doggy\n")
    return {name: f"n{offset:08d}" for name, offset in offsets.items()}
