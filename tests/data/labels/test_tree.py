import re
from html.parser import HTMLParser

import pytest

from intern_vision.data.labels import tree
from intern_vision.data.labels.merge import merge
from intern_vision.data.labels.tree import merge_rows, tree_html
from intern_vision.data.labels.vocabulary import Vocabulary

VOID = {"br", "meta", "img", "hr", "input", "link"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed wrongly; keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser


def lists(num_more=0):
    classes = [{"name": "dog", "parent": "animal"}, {"name": "<b>cat</b>", "parent": "animal"}, {"name": "kite"}]
    classes += [{"name": f"worm {i}", "parent": "animal"} for i in range(num_more)]
    return [
        Vocabulary.from_dict({"name": "one", "classes": classes}),
        Vocabulary.from_dict({"name": "two", "classes": ["dogs", {"name": "poodle", "parent": "dog"}]}),
    ]


def test_the_tree_with_counts():
    merged = merge(lists())
    (dog,), (animal,) = merged.system.find("dog"), merged.system.find("animal")
    page = parsed(tree_html(merged, {dog: 7, animal: 12}))
    text = " ".join("".join(page.text).split())
    # A dog is a class of two lists, a poodle of one; with the cat that is four of animals.
    assert re.search(r"animal c\d+ · 4 classes · 12 images", text)
    assert re.search(r"dog c\d+ · 3 classes · 7 images · one, two", text)
    assert "1 concept without parents and children" in text
    assert "5 concepts from 5 classes of 2 vocabularies; 0 classes wait" in text
    # A name is text, never a tag.
    assert "<b>cat</b>" in "".join(page.text) and page.tags.count("b") == 5


def test_a_row_a_vocabulary():
    rows = merge_rows(merge(lists()))
    assert [(row["name"], dict(row["counts"]), row["num_uncertain"]) for row in rows] == [
        ("one", {"new": 3}, 0),
        ("two", {"lemma": 1, "new": 1}, 0),
    ]


@pytest.mark.parametrize(("name", "limit", "shown"), [("MAX_CHILDREN", 10, 10), ("MAX_NODES", 6, 5)])
def test_large_systems_are_cut_and_counted(monkeypatch, name, limit, shown):
    monkeypatch.setattr(tree, name, limit)
    text = " ".join("".join(parsed(tree_html(merge(lists(num_more=40)))).text).split())
    assert len(re.findall(r"(?:worm \d+|dog|<b>cat</b>) c\d+", text)) == shown
    assert f"{42 - shown} more" in text
