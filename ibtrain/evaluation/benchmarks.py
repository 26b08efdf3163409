"""A benchmark: prepared records answered by a model, by one process or several, and scored."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from ibtrain.data import catalog
from ibtrain.data.records import Record
from ibtrain.data.shards.card import CARD, read_card
from ibtrain.data.shards.records import check_index, fingerprint, read_records
from ibtrain.distributed.ranks import Ranks, on_every_rank, on_rank_zero
from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.answering import Asked, answer, check_fit, decoding_settings
from ibtrain.evaluation.generation import DecodingSettings
from ibtrain.evaluation.protocols import Protocol, result_name
from ibtrain.evaluation.scoring import Result, best_constant, score_samples, type_of
from ibtrain.evaluation.store import AnswerStore
from ibtrain.pretrained.opening import OpenedModel

logger = logging.getLogger(__name__)
PICTURES_KEPT = 24
_FORMAT = 1  # raise it when answers are stored or made otherwise


@dataclass(frozen=True)
class Options:
    """How an evaluation is run; only `batch_size` may change a figure, in its last digits.

    `vocabularies` are by the name of the shard directory. `greedy` answers with one beam and no
    penalties whatever the protocol says.
    """

    batch_size: int = 32
    limit: int | None = None
    shuffle_images: bool = False
    seed: int = 0
    greedy: bool = False
    progress: bool = False
    vocabularies: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"batch size {self.batch_size} and limit {self.limit} must be at least 1"
            )

    def asked(self, directory: Path, protocol: Protocol, way_name: str, decodes: bool) -> Asked:
        """How the records of a directory are answered in a way of its protocol."""
        way = protocol.ways[way_name]
        decoding = decoding_settings(way.decoding, encoder_decoder=decodes)
        if self.greedy:
            decoding = DecodingSettings(beams=1, max_new_tokens=decoding.max_new_tokens)
        vocabulary = (self.vocabularies or {}).get(directory.name, ())
        return Asked(way, decoding, vocabulary)


def evaluate(
    opened: OpenedModel,
    directory: Path,
    protocol: Protocol,
    way_name: str,
    answers: Path,
    options: Options = Options(),  # noqa: B008  (frozen)
    *,
    ranks: Ranks = Ranks(0, 1, 0, 1),  # noqa: B008  (frozen)
    model: str = "",
) -> Result | None:
    """Answers and scores the records in a directory of shards, as far as that is not done already.

    Args:
        opened: the model.
        directory: prepared shards of one dataset.
        protocol: of that dataset.
        way_name: one of the protocol's ways.
        answers: where answers are kept, see store.py.
        options: how.
        ranks: this process among those that share the work; every one of them calls this.
        model: what tells the model from others, see `run.weights_digest`.

    Returns:
        The result on rank 0, None on the others.

    Raises:
        ValueError: the shards are missing or damaged, hold several datasets, or do not fit the
            metric, or images cannot be shuffled.
    """
    decodes = bool(opened.model.config.text_config.is_encoder_decoder)
    asked = options.asked(directory, protocol, way_name, decodes)
    name = result_name(directory, way_name)
    total = _count(directory, asked, options)
    if not total:
        wanted = ", ".join(asked.way.forms or ())
        raise ValueError(f"{directory} has no record of the forms {wanted}")
    on_every_rank(ranks, lambda: _check_first(directory, asked, options))
    sizes = [
        min(options.batch_size, total - begin) for begin in range(0, total, options.batch_size)
    ]
    store = AnswerStore(answers, name, _request(opened, directory, asked, options, model))
    attempt, done = on_rank_zero(ranks, lambda: (store.begin(), set(store.done(sizes))))
    own = [batch for batch in range(len(sizes)) if batch not in done][ranks.rank :: ranks.world]

    def work() -> None:
        writer = store.writer(attempt, ranks.rank)
        wanted = set(own)
        shown = options.progress and ranks.rank == 0
        with tqdm(
            total=total,
            initial=sum(sizes[batch] for batch in done),
            desc=name,
            unit=" answers",
            disable=not shown,
        ) as bar:
            for batch, records in _batches(_records(directory, asked, options), options.batch_size):
                if batch in wanted:
                    writer.write(batch, answer(opened, records, asked))
                    bar.update(min(len(records) * ranks.world, total - bar.n))

    on_every_rank(ranks, work)
    if ranks.rank:
        return None
    return _result(store.done(sizes), sizes, directory, protocol, way_name, asked, options)


def _count(directory: Path, asked: Asked, options: Options) -> int:
    """How many records are answered."""
    if asked.way.forms is None:
        return min(check_index(directory).samples, options.limit or 1 << 62)
    return sum(1 for _ in _of_forms(directory, asked, options.limit))


def _of_forms(directory: Path, asked: Asked, limit: int | None) -> Iterator[Record]:
    forms = asked.way.forms
    records = read_records(directory)
    return islice((one for one in records if forms is None or one.form in forms), limit)


def _records(directory: Path, asked: Asked, options: Options) -> Iterator[tuple[int, Record]]:
    """The records to answer with their numbers; of one dataset, or a ValueError."""
    records: Iterator[Record] = _of_forms(directory, asked, options.limit)
    if options.shuffle_images:
        records = iter(with_shuffled_images(list(records), options.seed))
    first = ""
    for number, record in enumerate(records):
        first = first or record.dataset
        if record.dataset != first:
            raise ValueError(
                f"a benchmark is of one dataset; record {record.id} is of {record.dataset!r}, "
                f"those before it of {first!r}"
            )
        yield number, record


def _batches(
    records: Iterator[tuple[int, Record]], size: int
) -> Iterator[tuple[int, list[tuple[int, Record]]]]:
    number = 0
    while batch := list(islice(records, size)):
        yield number, batch
        number += 1


def _check_first(directory: Path, asked: Asked, options: Options) -> None:
    check_fit(next(_of_forms(directory, asked, options.limit)), asked)


def _request(
    opened: OpenedModel, directory: Path, asked: Asked, options: Options, model: str
) -> dict[str, Any]:
    """All that the answers depend on."""
    vocabulary = "\n".join(asked.vocabulary)
    return {
        "format": _FORMAT,
        "model": model or f"{opened.description}, step {opened.step}",
        "dtype": str(opened.model.query_tokens.dtype),
        "shards": fingerprint(check_index(directory)),
        "way": asked.way.model_dump(mode="json", exclude={"metric"}),
        "decoding": asdict(asked.decoding),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest()[:16] if vocabulary else "",
        "batch_size": options.batch_size,
        "limit": options.limit,
        "shuffle_images": options.seed if options.shuffle_images else None,
    }


def _result(
    done: Mapping[int, list[Answered]],
    sizes: Sequence[int],
    directory: Path,
    protocol: Protocol,
    way_name: str,
    asked: Asked,
    options: Options,
) -> Result:
    left = [batch for batch in range(len(sizes)) if batch not in done]
    if left:
        raise RuntimeError(
            f"{len(left)} of {len(sizes)} batches of {directory.name} were not answered; run the "
            "command again, what is answered is kept"
        )
    samples = tuple(one for batch in range(len(sizes)) for one in done[batch])
    score, by, notes = score_samples(samples, asked.way)
    constant, constant_by_type = best_constant(samples, asked.way)
    about, more, set_aside = _about(directory, protocol, len(samples))
    for note in more:
        logger.warning("%s: %s", directory.name, note)
    missing = sum(bool(sample.missing) for sample in samples) + set_aside
    if missing:
        more += (f"partial: {missing:,} records are missing (no readable image, or set aside)",)
    shown = _shown(samples)
    return Result(
        name=result_name(directory, way_name),
        protocol=protocol,
        way_name=way_name,
        way=asked.way,
        samples=samples,
        score=score,
        by=by,
        best_constant=constant,
        best_constant_by_type=constant_by_type,
        missing=missing,
        shuffled_images=options.shuffle_images,
        notes=(*notes, *more),
        images={
            record.id: record.images[0]
            for number, record in _records(directory, asked, options)
            if number in shown and record.images
        },
        about=about
        | {"decoding": asdict(asked.decoding) if asked.way.answering != "rank" else None}
        | {"vocabulary": len(asked.vocabulary) or None, "greedy": options.greedy},
    )


def _shown(samples: Sequence[Answered]) -> set[int]:
    """Numbers of samples whose pictures are kept, spread over all and over their types."""
    by_type: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        by_type[type_of(sample)].append(sample.index)
    each = max(1, PICTURES_KEPT // len(by_type))
    spread = [own[:: max(1, len(own) // each)][:each] for own in by_type.values()]
    return set(sorted(number for own in spread for number in own)[: 2 * PICTURES_KEPT])


def _about(
    directory: Path, protocol: Protocol, count: int
) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """(where the records come from, what is unusual about that, how many were set aside)."""
    index = check_index(directory)
    about: dict[str, Any] = {"dataset": protocol.dataset, "shards": fingerprint(index)}
    if not (directory / CARD).is_file():
        return about, (), 0
    card = read_card(directory)
    report, request = card["report"], card.get("request")
    request = request if isinstance(request, dict) else {}
    split = str(report.get("split", ""))
    about |= {"split": split, "sources": request.get("sources", {})}
    notes = []
    marked = protocol.source_of("", "split") == "published"
    if marked and protocol.split and split and split != protocol.split:
        notes.append(f"split {split}; the paper's figures are of {protocol.split}")
    known = {entry.name: entry for entry in catalog.entries()}.get(protocol.dataset)
    of_split = known.splits.get(split) if known else None
    published = of_split.size if of_split else None
    hashes = of_split.sha256 if of_split else request.get("known_files")
    notes += _other_files(about["sources"], hashes)
    if published and published != index.samples and count == index.samples:
        notes.append(
            f"{index.samples:,} records; {published:,} are published for {split}: other files, or "
            "not all of them"
        )
    return about, tuple(notes), int(report["quarantined"])


def _other_files(found: object, known: object) -> list[str]:
    """The files that are not those whose hashes are known, a sentence each."""
    if not isinstance(found, dict) or not isinstance(known, dict):
        return []
    return [
        f"{name} is not the known file: its SHA-256 begins with {str(digest)[:12]}, that of the "
        f"known one with {str(expected)[:12]}"
        for name, digest in found.items()
        if (expected := known.get(name, known.get(Path(str(name)).name))) not in (None, digest)
    ]


def with_shuffled_images(records: Sequence[Record], seed: int) -> list[Record]:
    """The records with their images dealt again; records without an image stay as they are.

    Equal images (several questions on one picture) are laid side by side and the row is turned by
    the longest such run, so that every record gets a different image, unless one image makes up
    more than half of all; then as many as possible do.

    Raises:
        ValueError: when there are not two different images.
    """
    by_image: dict[bytes, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.images:
            by_image[hashlib.sha256(b"".join(record.images)).digest()].append(index)
    if len(by_image) < 2:
        raise ValueError(
            f"{len(by_image)} different images among {len(records)} questions: nothing to shuffle"
        )
    random = Random(f"{seed}/images")
    groups = list(by_image.values())
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    order = [index for group in groups for index in group]
    turn = max(len(group) for group in groups)
    shuffled = list(records)
    for position, index in enumerate(order):
        giver = records[order[(position + turn) % len(order)]]
        shuffled[index] = replace(records[index], images=giver.images)
    return shuffled
