"""How each benchmark is asked and scored, and whose word that is.

The shipped protocols are one YAML file each in protocols/, in which every value is marked:
"published" in the paper, from "released code" (LAVIS's), or "ours" where nothing says. A dataset of
one's own brings its protocol in the section `evaluation` of its own file (data/answering.py), which
`data prepare` puts on the card of the shards.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ibtrain.data.answering import MAIN, Ways, check_ways, section_of
from ibtrain.data.catalog import get, load_entry
from ibtrain.data.shards.card import CARD, read_card
from ibtrain.data.shards.index import check_index
from ibtrain.data.shards.records import read_records

PROTOCOLS = Path(__file__).parent / "protocols"
Source = Literal["published", "released code", "ours"]


class Outside(BaseModel):
    """What somebody else got, and where that is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    who: str
    value: float
    source: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: str
    evaluation: dict[str, Any]
    sources: dict[str, Source]
    table_1: dict[str, float] = Field(default_factory=dict)
    table_3: dict[str, float | dict[str, float]] = Field(default_factory=dict)
    outside: tuple[Outside, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """The ways of answering a dataset, and what stands beside its scores.

    `split` is the one that the figures of `table_1` are of; `prompts` are the dataset's, by form.
    """

    dataset: str
    ways: Ways
    split: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    table_1: dict[str, float] = field(default_factory=dict)
    table_3: dict[str, float | dict[str, float]] = field(default_factory=dict)
    outside: tuple[Outside, ...] = ()
    notes: tuple[str, ...] = ()

    def source_of(self, way: str, value: str) -> Source:
        """Whose word a value of a way is, such as `metric` or `decoding.beams`."""
        key = f"{way}.{value}" if way else value
        while key not in self.sources and "." in key:
            key = key.rpartition(".")[0]
        return self.sources.get(key, "ours")

    def table_3_of(self, way: str) -> dict[str, float]:
        """The fine-tuned figures of a way."""
        own = self.table_3.get(way) if way else self.table_3
        figures = own.items() if isinstance(own, dict) else ()
        return {key: value for key, value in figures if isinstance(value, (int, float))}


@cache
def shipped_protocols() -> dict[str, Protocol]:
    """The protocols of protocols/, by dataset."""
    found = {}
    for path in sorted(PROTOCOLS.glob("*.yaml")):
        try:
            file = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValidationError) as error:  # ours, and tested
            raise ValueError(f"{path}: {error}") from error
        found[file.dataset] = Protocol(
            dataset=file.dataset,
            ways=check_ways(file.evaluation, str(path)),
            split=file.split,
            prompts=get(file.dataset).prompts,
            sources=file.sources,
            table_1=file.table_1,
            table_3=file.table_3,
            outside=file.outside,
            notes=file.notes,
        )
    return found


def protocol_of(directory: Path, own: Path | None = None) -> Protocol:
    """The protocol of the dataset in a directory of shards.

    Args:
        directory: the shards.
        own: the file of a dataset whose section `evaluation` counts instead of what the shards say.

    Raises:
        ValueError: the shards are missing or damaged, or nothing says how to evaluate them.
    """
    dataset = dataset_of(directory)
    if own is not None:
        entry = load_entry(own)
        section = section_of(entry.evaluation, entry.metric)
        if section is None:
            raise ValueError(f"{own}: evaluation: missing; it names `answering` and `metric`")
        return Protocol(dataset, check_ways(section, str(own)), prompts=entry.prompts)
    card = read_card(directory) if (directory / CARD).is_file() else {}
    request = card.get("request")
    section = request.get("evaluation") if isinstance(request, dict) else None
    if isinstance(section, dict):
        return Protocol(dataset, check_ways(section, str(directory / CARD)))
    shipped = shipped_protocols()
    if dataset in shipped:
        return shipped[dataset]
    raise ValueError(
        f"{directory}: nothing says how {dataset!r} is evaluated; give its file a section such as "
        "`evaluation: {answering: generate, metric: VQA accuracy}` and prepare it again, or name "
        f"the file with --protocol {directory.name}=FILE"
    )


def dataset_of(directory: Path) -> str:
    """The dataset that a directory of shards holds, by its card, or where it has none by its first
    record.

    Raises:
        ValueError: when the shards are missing or damaged.
    """
    check_index(directory)
    if (directory / CARD).is_file():
        return str(read_card(directory)["report"]["dataset"])
    return next(read_records(directory)).dataset


def result_name(directory: Path, way: str) -> str:
    """What a way's result goes by."""
    return directory.name if way == MAIN else f"{directory.name}-{way}"
