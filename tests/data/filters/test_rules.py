import pytest

from intern_vision.data.filters.rules import CapRule, ClusterRule, ScoreRule, ShareRule, SizeRule, TextRule, parse_rule
from intern_vision.errors import ConfigError

RULES = {
    "text": TextRule(),
    "text:missing=remove,urls=true": TextRule(missing="remove", urls=True),
    "size:min_px=64,max_aspect=2.5": SizeRule(min_px=64, max_aspect=2.5),
    "cap:per_concept=500": CapRule(per_concept=500),
    "score:keep_share=0.8": ScoreRule(keep_share=0.8),
    "cluster": ClusterRule(),
    '{"rule": "text", "scripts": ["latin", "greek"]}': TextRule(scripts=("latin", "greek")),
    '{"rule": "share", "sources": {"a": 1, "b": 0.5}}': ShareRule(sources={"a": 1.0, "b": 0.5}),
}
WRONG = {
    "txt": "rule: expected one of text, size, score, cap, share, cluster, got 'txt'",
    "size:min_px": "rule size: expected field=value, got 'min_px'",
    "size:min=3": "rule size.min: unknown key; known keys here: ",
    "size:min_px=small": "rule size.min_px: expected a valid integer",
    "cap": "rule cap.per_concept: expected a value, got none",
    "score": "rule score: give one of min_similarity and keep_share",
    "{": "rule: expected a JSON object, got '{'",
    "text:scripts=klingon": "rule text.scripts: ",
}


@pytest.mark.parametrize("text", RULES)
def test_a_rule_in_short_and_as_json(text):
    assert parse_rule(text) == RULES[text]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_rule_is_one_line(text):
    with pytest.raises(ConfigError) as error:
        parse_rule(text)
    assert str(error.value).startswith(WRONG[text]) and "\n" not in str(error.value)
