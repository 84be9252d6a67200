import re

from benchmarks import label_system


def test_a_line_for_everything_done(capsys):
    label_system.main(["--num-concepts", "50", "400"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and "cores" in lines[-1]
    figures = [re.fullmatch(r" +(\d+) concepts  (.+?) +([\d.]+) CPU-s +([\d.]+) us each", line) for line in lines[:-1]]
    assert [int(figure[1]) for figure in figures] == [50] * 5 + [400] * 5
    assert {figure[2] for figure in figures[:5]} == {figure[2] for figure in figures[5:]}
