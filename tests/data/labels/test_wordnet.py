import pytest
from wordnet_files import write_wordnet

from intern_vision.data.labels.wordnet import read_wordnet
from intern_vision.errors import DataError


def test_nouns_with_their_hypernyms(tmp_path):
    ids = write_wordnet(tmp_path)
    wordnet = read_wordnet(tmp_path)
    system = wordnet.system
    assert system[ids["dog"]].names["en"] == ("dog", "domestic dog", "Canis familiaris")
    assert system[ids["dog"]].descriptions["en"] == "a member of the genus Canis"
    assert system.parents(ids["laika"]) == (ids["dog"], ids["animal"])
    assert system.ancestors(ids["laika"]) == {ids["dog"], ids["animal"], ids["entity"]}
    assert system.roots == (ids["entity"],)
    # The byte at the offset is where the synset stands.
    data = (tmp_path / "data.noun").read_bytes()
    assert data[int(ids["frank"][1:]) :].startswith(ids["frank"][1:].encode())


def test_senses_and_exceptions(tmp_path):
    ids = write_wordnet(tmp_path)
    wordnet = read_wordnet(tmp_path)
    assert wordnet.senses == {"dog": (ids["dog"], ids["frank"]), "hot dog": (ids["frank"],)}
    assert wordnet.exceptions == {"corpora": ("corpus",), "hot doggies": ("hot dog", "hot doggy")}
    (tmp_path / "noun.exc").unlink()
    assert read_wordnet(tmp_path).exceptions == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("data.noun", "0000174 03 n 01 entity 0 000 | short offset"),
        ("data.noun", "00001740 03 v 01 entity 0 000 | a verb"),
        ("data.noun", "00001740 03 n 02 entity 0 000 | a word too few"),
        ("data.noun", "00001740 03 n 01 entity 0 002 @ 00001741 n 0000 | a pointer too few"),
        ("data.noun", "words"),
        ("index.noun", "dog n 2 1 @ 2 1 00001740"),
        ("index.noun", "dog n x 1 @"),
    ],
)
def test_a_line_of_another_format_is_named(tmp_path, name, line):
    write_wordnet(tmp_path)
    with open(tmp_path / name, "a") as file:
        file.write(line + "\n")
    number = len((tmp_path / name).read_text().splitlines())
    with pytest.raises(DataError, match=rf"{name}:{number}: expected a line of {name}"):
        read_wordnet(tmp_path)


def test_missing_files_and_cycles(tmp_path):
    with pytest.raises(DataError, match="data.noun: no such file; give the folder dict/"):
        read_wordnet(tmp_path)
    ids = write_wordnet(tmp_path)
    data = (tmp_path / "data.noun").read_text()
    entity, animal = ids["entity"][1:], ids["animal"][1:]
    broken = data.replace(f"{entity} 03 n 01 entity 0 002 ", f"{entity} 03 n 01 entity 0 003 @ {animal} n 0000 ")
    (tmp_path / "data.noun").write_text(broken)
    with pytest.raises(DataError, match=r"data.noun: taxonomy: cycle .*\(animal\).* -> .*\(entity\)"):
        read_wordnet(tmp_path)
