"""The survey of a conversion: ids that come again, whatever the number of chunks and batches."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ibtrain.data.preparation import survey
from ibtrain.data.preparation.survey import Survey, make_survey
from ibtrain.data.readers import Rejected
from ibtrain.data.records import Answer, Example


def example(identity: str, text: str, annotation: str = "", image: str = "a.jpg") -> Example:
    return Example(
        "mine",
        "task",
        identity,
        Path("/data/raw", image),
        (Answer(text),),
        instructions=("Q",),
        annotation=annotation,
    )


def planned(tmp_path: Path, *found: Example | Rejected) -> Survey:
    directory = tmp_path / "parts"
    directory.mkdir(exist_ok=True)
    return make_survey(directory, Path("/data/raw"), found)


def contents(survey: Survey) -> list[tuple[int, str, str]]:
    """(place, id, answer) of every example, in the order of the annotations."""
    chunks = range(survey.chunks)
    rows = [survey.example(line) for chunk in chunks for line in survey.lines_of(chunk)]
    return sorted((number, found.id, found.answers[0].text) for number, found in rows)


def test_ids_that_come_again_are_renamed_and_nothing_else_is(tmp_path: Path):
    survey = planned(
        tmp_path,
        example("7", "red"),
        example("7", "left"),
        example("7", "red"),  # said before
        example("7#2", "is called so"),  # and keeps its name
        example("7", "up"),
        example("7", "left"),  # said before, under its new name
        example("8", "red"),
        example("7#3#3", "too"),
        example("7#3", "three"),
        example("7#2", "again"),
    )
    assert contents(survey) == [
        (0, "7", "red"),
        (1, "7#2#2", "left"),
        (3, "7#2", "is called so"),
        (4, "7#3#3#3", "up"),
        (6, "8", "red"),
        (7, "7#3#3", "too"),
        (8, "7#3", "three"),
        (9, "7#2#2#2", "again"),
    ]
    assert (survey.read, survey.examples, survey.renamed) == (10, 8, 3)
    assert survey.dropped == {"duplicate": 2}


def test_an_annotation_is_kept_renamed_or_left_out_as_a_whole(tmp_path: Path):
    def talk(place: str, *texts: str) -> list[Example]:
        return [example(f"a-{n}", text, place) for n, text in enumerate(texts)]

    bad = Rejected("a", "damaged")
    survey = planned(
        tmp_path,
        *talk("f[0]", "one"),
        *talk("f[1]", "one", "two"),  # the first turn is known, the whole is not
        bad,
        *talk("f[2]", "one", "two"),
        *talk("f[3]", "one"),
        *talk("f[4]", "other"),
    )
    assert contents(survey) == [
        (0, "a-0", "one"),
        (1, "a-0#2", "one"),
        (2, "a-1#2", "two"),
        (7, "a-0#3", "other"),
    ]
    assert (survey.renamed, survey.dropped, survey.rejected) == (3, {"duplicate": 3}, 1)
    assert survey.rejections() == [{"number": 3, "id": "a", "reason": "damaged"}]


@pytest.mark.parametrize("seed", range(6))
def test_names_are_unique_and_the_same_for_any_batches_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    random = Random(seed)
    names = ["7", "7#2", "7#2#2", "7#3", "8", "8-0", "9"]
    found = [
        example(random.choice(names), random.choice("abcdef"), f"f[{n // 2}]", f"{n % 5}.jpg")
        for n in range(200)
    ]
    results = []
    for batch, size in ((4096, 4096), (1, 4096), (7, 3)):
        monkeypatch.setattr(survey, "_BATCH", batch)
        monkeypatch.setattr(survey, "CHUNK_EXAMPLES", size)
        results.append(contents(planned(tmp_path, *found)))
    assert results[0] == results[1] == results[2]
    ids = [identity for _, identity, _ in results[0]]
    assert len(set(ids)) == len(ids)
    # What is left out stands before, the same in all but its new name.
    kept = {number for number, _, _ in results[0]}
    said: set[tuple[tuple[str, str, str], ...]] = set()
    for number, pair in enumerate(zip(found[::2], found[1::2], strict=True)):
        whole = tuple((one.id, one.answers[0].text, str(one.image)) for one in pair)
        positions = {2 * number, 2 * number + 1}
        assert (positions <= kept) == (whole not in said)
        assert positions & kept in (set(), positions)
        said.add(whole)


def test_data_without_repeats_has_the_lines_it_always_had(tmp_path: Path):
    made = planned(tmp_path, example("1", "red"), example("2", "blue", "f[1]"))
    assert made.lines_of(0) == [
        f'{number}\t{survey._hash("raw/a.jpg"):016x}\t{{"dataset": "mine", "task": "task", '
        f'"id": "{number + 1}", "image": "raw/a.jpg", "answers": [{{"text": "{text}", '
        '"weight": 1.0}], "form": "", "slots": {}, "instructions": ["Q"], "details": {}, '
        '"video": null}\n'
        for number, text in enumerate(("red", "blue"))
    ]


def test_occurrences_are_counted_in_order():
    keys = np.random.default_rng(0).integers(0, 40, 500).astype(np.uint64)
    seen: Counter[int] = Counter()
    expected = []
    for key in keys.tolist():
        expected.append(seen[key])
        seen[key] += 1
    assert survey._occurrences(keys).tolist() == expected
    assert survey._occurrences(keys[:0]).tolist() == []


def test_memory_stays_bounded_however_many_ids_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(survey, "_BATCH", 64)
    monkeypatch.setattr(survey, "_BUCKETS", 4)

    def found(count: int) -> Iterator[Example]:
        for number in range(count):  # most ids twice, and one id thousands of times
            identity = "same" if number % 3 == 0 else str(number // 2)
            yield example(identity, str(number), f"f[{number}]", f"{number % 900}.jpg")

    peaks = []
    for number, count in enumerate((1500, 1500, 6000, 6000)):  # what is loaded once is not ours
        directory = tmp_path / str(number)
        directory.mkdir()
        tracemalloc.start()
        made = make_survey(directory, Path("/data/raw"), found(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made.examples == count and made.renamed > count // 3
        assert not list(directory.glob("plan/repeated*"))
        assert json.loads((directory / "plan/plan.json").read_text())["renamed"] == made.renamed
    # A line of the survey has 250 bytes; of each id a few numbers are kept.
    assert min(peaks[2:]) - min(peaks[:2]) < 4500 * 64, peaks
