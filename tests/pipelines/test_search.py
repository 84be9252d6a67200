import json

from google.protobuf.json_format import MessageToDict

from intern_pipelines.search import search
from intern_vision.stages.search_round import NUM_ROUNDS, ROUND_SIZE


def producers(task: dict) -> set[str]:
    """Tasks whose outputs a task takes."""
    values = task.get("inputs", {}).get("artifacts", {}).values()
    return {item["producerTask"] for value in values for item in value.values() if isinstance(item, dict)}


def test_rounds_follow_each_other_and_their_candidates_run_side_by_side():
    spec = MessageToDict(search.pipeline_spec)
    (rounds,) = (c["dag"]["tasks"] for n, c in spec["components"].items() if n == "comp-intern-search-rounds")
    loops = [name for name in rounds if name.startswith("for-loop")]
    proposals = sorted(name for name in rounds if name.startswith("search-round"))
    assert len(loops) == len(proposals) == NUM_ROUNDS
    proposed, known = None, set()
    for proposal in proposals:
        # A round sees the round before and all that its candidates scored.
        assert producers(rounds[proposal]) == known
        (loop,) = (name for name in loops if producers(rounds[name]) == {proposal})
        items = json.loads(rounds[loop]["parameterIterator"]["items"]["raw"])
        assert items == [str(number) for number in range(ROUND_SIZE)]
        (trial,) = spec["components"][f"comp-{loop}"]["dag"]["tasks"].values()
        assert trial["taskInfo"]["name"] == "candidate"
        proposed, known = proposal, {proposal, loop}
    assert proposed == f"search-round-{NUM_ROUNDS}"
    assert producers(rounds["search"]) == known
