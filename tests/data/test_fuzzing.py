"""Damaged files from elsewhere: thousands of mutations of valid ones, the same every time.

Each must give records, a line of the quarantine, or a ValueError of ours that names the file: no
other exception, nothing that takes over ten seconds, nothing written outside the output directory,
no other program, no network, no pickle. IBTRAIN_FUZZ sets how many mutations there are in all
(2,000 by default). Most annotations are only read and rendered, every fourth also goes into shards.
"""

import json
import os
import shutil
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import yaml
import zstandard

import ibtrain
from ibtrain.data import catalog, instructions, readers
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.records import Example, Record
from ibtrain.data.shards.records import COLUMNS, check_index, read_records
from ibtrain.data.shards.repair import repair
from ibtrain.data.shards.verify import verify
from tests.data.conftest import write_image
from tests.data.mutations import Mutation, mutate
from tests.data.readers.harness import FIXTURES, raw_directory
from tests.data.shard_directories import (
    record,
    replace_raw,
    replace_stored,
    write_card,
    write_shards,
)
from tests.data.videos import write_frames, write_video
from tests.data.watching import Watch, outside, peak_memory, snapshot

TOTAL = int(os.environ.get("IBTRAIN_FUZZ", "2000"))
SHARE = {
    "annotations": 0.55,
    "own": 0.1,
    "datasets": 0.08,
    "templates": 0.05,
    "index": 0.1,
    "shards": 0.12,
}
MEMORY = 1 << 29  # bytes that no damage may add to this process
OURS = str(Path(ibtrain.__file__).parent)
VIDEOS = {  # of the fixtures; a name without a suffix is a folder of frames
    "msvd_qa/official": (
        "YouTubeClips/-4wsuPCjDBc_5_15.avi",
        "YouTubeClips/-7KMZQEsJW4_205_208",
    ),
    "msvd_qa/lavis": ("videos/-4wsuPCjDBc_5_15.avi",),
    "msrvtt_qa/official": ("TestVideo/video7010.mp4",),
    "ivqa/official": ("videos/rqmDgsACyQ8.avi", "videos/-1aBcDeFg2H"),
}
DATASETS = [entry.name for entry in catalog.entries()]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module", autouse=True)
def no_bytecode() -> Iterator[None]:
    """Modules imported on the way are not written to the source tree while it is watched; the one
    that takes long is imported before.
    """
    import streaming  # noqa: F401

    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    yield
    sys.dont_write_bytecode = before


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


class Case:
    """One damaged input and what came of it; a failure says how to do it again."""

    def __init__(self, watch: Watch, seed: str, mutation: Mutation, output: Path) -> None:
        self._watch = watch
        self._output = output
        self._story = f"seed {seed!r}: {mutation.done}"

    def run(self, action: Callable[[], str], *names: str) -> str:
        """The outcome of `action`, or "refused" where it raised as it should.

        Args:
            action: what reads the damaged input.
            names: of which a refusal must have one in its message.
        """
        seconds, memory = time.process_time(), peak_memory()
        try:
            with self._watch.watching():
                outcome = action()
        except ValueError as error:
            outcome = "refused"
            self._check(any(name in str(error) for name in names), f"not named: {error}", error)
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            self._check(last.startswith(OURS), f"not raised by us, but in {last}", error)
        except BaseException as error:
            self._check(False, f"{type(error).__name__}: {str(error)[:300]}", error)
            raise
        seconds = time.process_time() - seconds
        self._check(seconds < 10, f"took {seconds:.1f} s")
        self._check(peak_memory() - memory < MEMORY, f"took {peak_memory() - memory} bytes")
        self._check(not self._watch.forbidden, f"did {self._watch.forbidden}")
        strays = outside(self._watch.written, self._output)
        self._check(not strays, f"wrote {strays}")
        secrets = [path for path in self._watch.read if path.endswith(("secret.jpg", "/passwd"))]
        self._check(not secrets, f"read {secrets}")
        return outcome

    def _check(self, good: bool, what: str, error: BaseException | None = None) -> None:
        if not good:
            trace = "".join(traceback.format_exception(error)) if error else ""
            pytest.fail(f"{self._story}\n{what}\n{trace[-3000:]}", pytrace=False)


def seeds(family: str, parts: int = 1, part: str = "") -> list[str]:
    """The seeds of a family of files, shared out evenly over its parts."""
    count = max(3, round(TOTAL * SHARE[family] / parts))
    return [f"{family}/{part}/{number}" for number in range(count)]


class Valid:
    """A valid raw directory, and the annotation files that a split of it is read from."""

    def __init__(self, dataset: str, split: str, raw: Path, files: list[Path]) -> None:
        self.dataset, self.split, self.raw, self.files = dataset, split, raw, files


def valid_directories(dataset: str, folder: Path) -> list[Valid]:
    """Every fixture that can be read as this dataset, once per split."""
    entry = catalog.get(dataset)
    found = []
    own = [FIXTURES / dataset] if (FIXTURES / dataset).is_dir() else sorted(FIXTURES.iterdir())
    layouts = [layout for folder in own for layout in sorted(folder.iterdir()) if layout.is_dir()]
    for layout in layouts:
        fixture = str(layout.relative_to(FIXTURES))
        raw = raw_directory(fixture, folder / fixture)
        for name in VIDEOS.get(fixture, ()):
            if "." in name:
                write_video(raw / name, 6, codec="mpeg4")
            else:
                write_frames(raw / name, 4)
        for split in entry.splits:
            try:
                files = readers.annotation_files(raw, split, entry)
            except ValueError:
                continue
            if any(isinstance(item, Example) for item in readers.read(raw, split, entry)):
                found.append(Valid(dataset, split, raw, _plain_files(files)))
    return found


def _plain_files(files: tuple[Path, ...]) -> list[Path]:
    """The annotation files; of a folder of them, those that are text."""
    plain = []
    for path in files:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        plain += [found for found in inside if found.suffix in (".json", ".jsonl", ".csv", ".txt")]
    return plain or [path for path in files if path.is_file()]


@pytest.mark.parametrize("dataset", DATASETS)
def test_damaged_annotations(dataset: str, watch: Watch, tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"not for reading")
    valid = valid_directories(dataset, tmp_path / "raw")
    assert valid, f"no fixture of {dataset} in {FIXTURES}"
    result = tmp_path / "result"
    result.mkdir()
    before = snapshot(tmp_path, but=result)
    outcomes: Counter[str] = Counter()
    for number, seed in enumerate(seeds("annotations", len(DATASETS), dataset)):
        random = Random(seed)
        way = rendered if number % 4 else prepared
        chosen = random.choice(valid)
        path = random.choice(chosen.files)
        good = path.read_bytes()
        mutation = mutate(good, path.suffix, random)
        path.write_bytes(mutation.data)
        case = Case(watch, seed, mutation, result)
        outcomes[
            case.run(
                lambda chosen=chosen, way=way: way(chosen, result / "out"),
                path.name,
                f"{dataset} ({chosen.split})",
            )
        ] += 1
        path.write_bytes(good)
        os.utime(path, ns=(before[str(path)][1],) * 2)
        assert {found.name for found in result.iterdir()} <= {"out"}, seed
        shutil.rmtree(result / "out", ignore_errors=True)
    assert snapshot(tmp_path, but=result) == before
    assert outcomes["refused"] + outcomes["quarantined"], outcomes  # damage is noticed


def rendered(valid: Valid, _: Path) -> str:
    """Reads a split and renders every instruction; what comes must be plain text and numbers."""
    entry = catalog.get(valid.dataset)
    rejected = 0
    for item in readers.read(valid.raw, valid.split, entry):
        if isinstance(item, Example):
            texts = (*instructions.render(item, entry), instructions.plain_input(item, entry))
            json.dumps([*texts, item.id, item.details], ensure_ascii=False).encode()
        else:
            assert item.id and item.reason
            rejected += item.bad
    return "quarantined" if rejected else "whole"


def prepared(valid: Valid, out: Path) -> str:
    """Prepares a split and reads what was written; every annotation must be accounted for."""
    report = prepare(valid.dataset, valid.raw, out, split=valid.split, budget=1.0, progress=False)
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert all({"id", "reason"} <= set(json.loads(line)) for line in lines)
    records = list(read_records(out))
    assert (len(records), len(lines)) == (report.written, report.quarantined)
    assert all(isinstance(value, Record) for value in records)
    return "quarantined" if lines else "whole"


OWN_LISTS = {  # as people have them, each (reader, file name, content)
    "semicolons": (
        "question_answer",
        "list.csv",
        'sep=;\r\nImage;Question;Answer;;\r\na.jpg;"What; now?";2;;\r\n'
        "sub\\b.jpg;Où?;là;;\r\n;;;;\r\n",
    ),
    "tabs": (
        "question_answer",
        "list.tsv",
        "image\tquestion\tanswer\na.jpg\tQ?\tA\nb.jpg\tR?\tB\n",
    ),
    "lines": (
        "question_answer",
        "list.json",
        '{"id": 7, "image": "a.jpg", "question": "Q?", "answers": [2, 2.5, "x"]}\n'
        '{"id": 7, "images": ["a.jpg", "sub/b.jpg"], "question": "R?", "answer": "B"}\n',
    ),
    "objects": (
        "caption_pairs",
        "list.json",
        '{\n "Image": "a.jpg",\n "Caption": ["One", 2]\n}\n'
        '{\n "Image": "a.jpg",\n "Caption": "3"\n}\n',
    ),
    "talk": (
        "conversation",
        "list.json",
        '[{"id": "x", "images": ["a.jpg", "sub/b.jpg"], "conversations": [{"from": "system", '
        '"value": "S"}, {"from": "human", "value": "<image>\\n<image>\\nQ?"}, {"from": "gpt", '
        '"value": "A <image>"}, {"from": "human", "value": "Last?"}]}, {"id": "x", '
        '"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "The <image> '
        'tag?"}, {"from": "gpt", "value": "B"}]}]',
    ),
    "messages": (
        "conversation",
        "list.jsonl",
        '{"messages": [{"role": "user", "content": "<image>Q?"}, {"role": "assistant", "content": '
        '"A"}], "images": ["a.jpg"]}\n{"messages": [{"role": "user", "content": [{"type": "image", '
        '"image": "a.jpg"}, {"type": "text", "text": "Q?"}]}, {"role": "assistant", "content": '
        '"A"}]}\n',
    ),
}


@pytest.mark.parametrize("kind", OWN_LISTS)
def test_damaged_lists_of_ones_own(kind: str, watch: Watch, tmp_path: Path):
    reader, name, content = OWN_LISTS[kind]
    (tmp_path / "secret.jpg").write_bytes(b"not for reading")
    raw = tmp_path / "raw"
    for image in ("a.jpg", "sub/b.jpg"):
        write_image(raw / image)
    path = raw / name
    own = tmp_path / "mine.yaml"
    own.write_text(
        f"name: mine\ntask: own\nreader: {reader}\nsplits: {{train: {{files: [[{name}]]}}}}\n"
        'prompts: {visual_question_answering: "{question}", captioning: Say}\n'
        "templates: [visual_question_answering, captioning]\n"
    )
    valid = Valid(str(own), "train", raw, [path])
    result = tmp_path / "result"
    result.mkdir()
    outcomes: Counter[str] = Counter()
    for number, seed in enumerate(seeds("own", len(OWN_LISTS), kind)):
        random = Random(seed)
        way = rendered if number % 4 else prepared
        good = content.encode(random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252")))
        mutation = mutate(good, path.suffix, random)
        path.write_bytes(mutation.data)
        case = Case(watch, seed, mutation, result)
        outcomes[
            case.run(lambda way=way: way(valid, result / "out"), path.name, "mine (train)")
        ] += 1
        shutil.rmtree(result / "out", ignore_errors=True)
    assert outcomes["refused"] and outcomes["refused"] < outcomes.total(), outcomes


def test_damaged_dataset_files(watch: Watch, tmp_path: Path):
    sources = sorted(catalog.DATASETS.glob("*.yaml"))
    path = tmp_path / "own.yaml"
    outcomes: Counter[str] = Counter()
    for seed in seeds("datasets"):
        random = Random(seed)
        mutation = mutate(random.choice(sources).read_bytes(), ".yaml", random)
        path.write_bytes(mutation.data)

        def load() -> str:
            entry = catalog.get(str(path))
            assert isinstance(entry, catalog.DatasetEntry)
            list(readers.read(tmp_path / "no raw directory", entry.default_split, entry))
            return "read"

        places = (str(path), "no raw directory", "no reader is called", "reader_options")
        outcomes[Case(watch, seed, mutation, tmp_path / "none").run(load, *places)] += 1
    assert outcomes["refused"]


def test_damaged_templates(watch: Watch, tmp_path: Path):
    sources = sorted(instructions.TEMPLATE_DIRECTORY.glob("*.yaml"))
    outcomes: Counter[str] = Counter()
    for seed in seeds("templates"):
        random = Random(seed)
        source = random.choice(sources)
        path = tmp_path / source.name
        mutation = mutate(source.read_bytes(), ".yaml", random)
        path.write_bytes(mutation.data)

        def load(path: Path = path) -> str:
            loaded = instructions.load_templates(path)
            values = dict.fromkeys(loaded.slots, "value")
            assert all(text.format_map(values) for text in loaded.templates)
            return "read"

        outcomes[Case(watch, seed, mutation, tmp_path / "none").run(load, str(path))] += 1
    assert outcomes["refused"] and outcomes["read"]


@pytest.fixture(scope="module")
def shard_directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards with their card, compressed and not."""
    folder = tmp_path_factory.mktemp("valid")
    for name, compression in (("zstd", "zstd:3"), ("raw", None)):
        records = [record(number) for number in range(8)]
        write_shards(folder / name, records, compression=compression, shard_bytes=5_000)
        write_card(folder / name)
    return [folder / "zstd", folder / "raw"]


def test_damaged_indexes_and_cards(watch: Watch, tmp_path: Path, shard_directories: list[Path]):
    for seed in seeds("index"):
        random = Random(seed)
        directory = copy(random.choice(shard_directories), tmp_path / "data")
        path = directory / random.choice(("index.json", "index.json", "card.json"))
        mutation = mutate(path.read_bytes(), ".json", random)
        path.write_bytes(mutation.data)
        shards_are_read_or_refused(Case(watch, seed, mutation, tmp_path / "none"), directory)


def test_damaged_shards(watch: Watch, tmp_path: Path, shard_directories: list[Path]):
    """The index is made to fit most of them, as an attacker would."""
    for seed in seeds("shards"):
        random = Random(seed)
        directory = copy(random.choice(shard_directories), tmp_path / "data")
        path = random.choice(sorted(directory.glob("shard.*")))
        number = int(path.name.split(".")[1])
        stored = path.read_bytes()
        raw = zstandard.decompress(stored) if path.suffix == ".zstd" else stored
        way = random.randrange(4)
        if way == 0:  # the file alone
            mutation = mutate(stored, ".mds", random)
            path.write_bytes(mutation.data)
        elif way == 1:
            mutation = mutate(stored, ".mds", random)
            replace_stored(directory, mutation.data, number)
        elif way == 2:
            mutation = mutate(raw, ".mds", random)
            replace_raw(directory, mutation.data, number)
        else:
            mutation = damaged_column(raw, random)
            replace_raw(directory, mutation.data, number)
        shards_are_read_or_refused(Case(watch, seed, mutation, tmp_path / "none"), directory)


def damaged_column(raw: bytes, random: Random) -> Mutation:
    """A raw shard with one column of one sample changed, its sizes and offsets made to fit."""
    (count,) = struct.unpack_from("<I", raw)
    offsets = list(struct.unpack_from(f"<{count + 1}I", raw, 4))
    number = random.randrange(count)
    sample = raw[offsets[number] : offsets[number + 1]]
    sizes = list(struct.unpack_from(f"<{len(COLUMNS)}I", sample))
    column = random.randrange(len(COLUMNS))
    begin = 4 * len(COLUMNS) + sum(sizes[:column])
    name, encoding = list(COLUMNS.items())[column]
    value = sample[begin : begin + sizes[column]]
    mutation = mutate(value, ".json" if encoding == "json" else "", random)
    rest = sample[4 * len(COLUMNS) : begin], sample[begin + sizes[column] :]
    sizes[column] = len(mutation.data)
    head = struct.pack(f"<{len(sizes)}I", *sizes)
    changed = head + rest[0] + mutation.data + rest[1]
    grown = len(changed) - len(sample)
    offsets = [offset + grown * (place > number) for place, offset in enumerate(offsets)]
    table = struct.pack(f"<I{count + 1}I", count, *offsets)
    begin, end = offsets[number], offsets[number] + len(sample)
    whole = table + raw[len(table) : begin] + changed + raw[end:]
    return Mutation(whole, f"{name} of sample {number}: {mutation.done}")


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def shards_are_read_or_refused(case: Case, directory: Path) -> None:
    """Reads and verifies a damaged directory, and offers it as a source to mend a good one."""
    before = snapshot(directory, but=directory / "none")

    def read() -> str:
        records = list(read_records(directory))
        assert len(records) == check_index(directory).samples
        assert all(isinstance(value, Record) for value in records)
        return "read"

    read_well = case.run(read, str(directory)) == "read"

    def check() -> str:
        report = verify(directory, progress=False)
        json.dumps([vars(problem) for problem in report.bad]).encode()
        assert all(problem.shard and problem.reason for problem in report.bad)
        assert report.bad or read_well, "verify found nothing in what cannot be read"
        return "bad" if report.bad else "good"

    case.run(check, str(directory))
    assert snapshot(directory, but=directory / "none") == before


def test_a_damaged_source_never_spoils_what_it_repairs(
    watch: Watch, tmp_path: Path, shard_directories: list[Path]
):
    for seed in seeds("index")[:60]:
        random = Random(f"repair/{seed}")
        good = random.choice(shard_directories)
        source, target = copy(good, tmp_path / "source"), copy(good, tmp_path / "target")
        broken = random.choice(("index.json", "card.json", min(source.glob("shard.*")).name))
        (target / broken).write_bytes(b"broken")
        path = random.choice(sorted(source.iterdir()))
        mutation = mutate(path.read_bytes(), path.suffix, random)
        path.write_bytes(mutation.data)

        def mend(source: Path = source, target: Path = target) -> str:
            before = verify(target, progress=False)
            after = repair(target, str(source), before, progress=False).after
            return "left" if after.bad else "mended"

        outcome = Case(watch, seed, mutation, target).run(mend, str(source), str(target))
        if outcome == "mended":
            assert list(read_records(target)) == list(read_records(good)), seed


def test_a_dataset_file_that_grows_when_read_is_refused(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "own.yaml"
    path.write_text("name: x\nsplits: " + "[" * 30_000)
    begin = time.process_time()
    for load in (catalog.load_entry, instructions.load_templates):
        with pytest.raises(ValueError, match=r"own\.yaml: nested more than 16 deep"):
            load(path)
    assert time.process_time() - begin < 10
    path.write_text("\n".join(lines))
    assert yaml.safe_load(path.read_text())  # as a parser alone would have it
    for load in (catalog.load_entry, instructions.load_templates):
        with pytest.raises(ValueError, match=r"own\.yaml"):
            load(path)
