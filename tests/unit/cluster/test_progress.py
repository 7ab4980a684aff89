"""What is seen while a sweep runs: on terminals of two widths, and as lines elsewhere."""

import io
import re

import pytest
from rich.console import Console
from support.progress_data import HalfWay
from support.terminal import screen_of

from spectral_mup.cluster.live_view import LiveView
from spectral_mup.cluster.progress import Event

DONE = 18
BAR = "━╸╺"
SHOW = f"from support.progress_data import show; show({DONE})"


def colours_of(screen, word: str) -> set[str]:
    """Of all cells in which a word stands."""
    lines = enumerate(screen.display)
    cells = [(y, x) for y, line in lines for at in re.finditer(re.escape(word), line) for x in range(*at.span())]
    return {screen.buffer[y][x].fg for y, x in cells}


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_whole_sweep_and_cuts_nothing(columns):
    screen = screen_of(SHOW, columns, 40)
    lines = [line.rstrip() for line in screen.display]
    first = next(i for i, line in enumerate(lines) if " runs done" in line)
    text, bar = re.fullmatch(rf"(.*?) ([{BAR}]+)", lines[first]).groups()
    assert re.fullmatch(rf"{DONE} of about \d+ to \d+ runs done; about .*\d (s|min) left", text)
    assert len(text) + 1 + len(bar) >= columns - 1, "the bar takes what is left"
    assert lines[first + 1].split() == "rule width runs best lr loss".split()
    curves = lines[first + 2 : first + 8]
    assert curves[1].split()[:6] == ["spectral", "64", "4/4", "2^-6", "2.0046", "bracketed,"]
    assert curves[5].split() == ["standard", "64", "0/3", "searching"]
    assert lines[first + 8] == "2 curves to follow"
    assert re.search(r"seed 0 +100/400 +3\.250$", lines[first + 10]), "what is trained now"
    assert "running" in lines[first + 9] and lines[first + 11].endswith("begins")
    assert not any("…" in line for line in lines)
    assert colours_of(screen, "diverged") == {"brown"} and colours_of(screen, "bracketed") == {"green"}
    assert colours_of(screen, "FAILED") == {"red"} and colours_of(screen, "100/400") == {"default"}


def test_no_colour_where_none_is_wanted():
    screen = screen_of(SHOW, 80, 40, NO_COLOR="1")
    assert {cell.fg for row in screen.buffer.values() for cell in row.values()} == {"default"}
    assert any("diverged" in line for line in screen.display)


def drawn(half_way: HalfWay, columns: int, rows: int, whole: bool = False) -> list[str]:
    half_way.go()
    view = LiveView(half_way.progress)
    view.whole = whole
    file = io.StringIO()
    Console(file=file, width=columns, height=rows).print(view)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("rows", [8, 12, 24])
def test_it_is_never_higher_than_the_terminal(rows):
    """Curves that have ended make room first; the last picture, which may pass upwards, has all of them."""
    many = ("sweep.depth=[2,3,4,5]", "lr.adaptive=false")
    lines = drawn(HalfWay(60, *many, workers=8), 80, rows)
    text = "\n".join(lines)
    assert len(lines) == rows - 1 and " runs done" in lines[0]
    assert re.search(r"^\d+ curves more, not shown", text, re.M) and re.search(r"^and \d more|seed 0 +begins", text, re.M)
    assert "bracketed" not in text and "searching" in text
    whole = drawn(HalfWay(60, *many, workers=8), 80, rows, whole=True)
    assert sum(line.startswith(("spectral ", "standard ")) for line in whole) >= 32 > rows


def test_a_narrow_terminal_has_the_text_and_no_bar():
    lines = drawn(HalfWay(DONE), 56, 40)
    assert lines[0].startswith(f"{DONE} of about") and not set(BAR) & set(lines[0])


def test_lines_say_as_much_without_a_terminal():
    half_way = HalfWay(DONE)
    with half_way.progress:
        half_way.go()
    heads, said = zip(*(re.fullmatch(r"\[(.*?)\] (.*)", line).groups() for line in half_way.lines), strict=True)
    numbers = [int(head.split()[0]) for head in heads]
    assert numbers == sorted(numbers) and set(range(1, DONE + 1)) == {*numbers}
    assert all(re.search(r"^\d+ of about \d+ to \d+ runs done; about .* left$", head) for head in heads)
    assert said.count("spectral width 64 depth 2: bracketed, best lr 2^-6, loss 2.0046") == 1
    assert any(line.endswith(": diverged at step 3") for line in said)
    assert not any("\x1b" in line for line in half_way.lines)


def test_a_run_that_the_plan_knows_to_have_ended_before_its_event_comes_counts_once():
    """A plan made between a result's writing and its event has that run already."""
    half_way = HalfWay(1)
    run = half_way.plan.todo[0]
    half_way.known[run.run_id] = half_way.loss(run)
    half_way.look()
    half_way.progress.on_event(Event("done", run, {"status": "done", "val_loss": 2.0, "seconds": 10.0, "trained": 40}))
    assert half_way.progress.done == 1


def test_the_time_left_is_of_the_whole_sweep_and_falls_as_it_goes():
    """Runs of 10 s on two workers: at least what the plan lists, and what is still to be planned too."""
    half_way = HalfWay(DONE)
    assert half_way.progress.time_left() == "", "no run was timed"
    half_way.go()
    least, usual = (5 * n for n in (len(half_way.plan.todo), half_way.progress.total - DONE))
    low, high = seconds_of(half_way.progress.time_left())
    assert least < low < high <= 1.3 * usual
    run = next(iter(half_way.progress.running.values()))["run"]
    half_way.progress.on_event(Event("step", run, {"step": 400, "steps": 400, "loss": 3.0}))
    assert seconds_of(half_way.progress.time_left())[0] < low
    fixed = HalfWay(DONE, "lr.adaptive=false")
    assert fixed.progress.counts() == "0 of 21 runs done"


@pytest.mark.parametrize("trained", [400, 4])
def test_the_first_run_corrects_the_time_of_all_that_follow_also_where_it_was_resumed(trained):
    """Before the next look; a run whose last steps were resumed took as long a step."""
    half_way = HalfWay(0, "lr.adaptive=false", "rule=[spectral]")
    run = half_way.plan.todo[0]
    done = {"status": "done", "val_loss": 2.0, "seconds": trained / 4, "trained": trained, "steps": 400}
    half_way.progress.on_event(Event("done", run, done))
    with_event = half_way.progress.time_left()
    assert half_way.progress.durations.seconds(run) == pytest.approx(100)
    half_way.known[run.run_id] = half_way.loss(run)
    half_way.look()
    assert with_event == half_way.progress.time_left() != ""


def seconds_of(span: str) -> tuple[float, float]:
    """Of 'A to B' in s or min."""
    low, _, high = span.partition(" to ")
    unit = {"s": 1, "min": 60}
    number, own = high.split()
    return float(low.split()[0]) * unit[low.split()[-1] if " " in low else own], float(number) * unit[own]
