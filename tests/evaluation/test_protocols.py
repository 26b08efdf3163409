import json

import pytest
import yaml

from ibtrain.data import catalog
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.shards.records import read_records
from ibtrain.evaluation.benchmarks import _about
from ibtrain.evaluation.protocols import PROTOCOLS, protocol_of, result_name, shipped_protocols
from tests.evaluation.pictures import noise

HELD_OUT = [entry.name for entry in catalog.entries() if entry.role != "held_in"]
HELD_IN = ["coco_caption", "okvqa", "aokvqa", "textcaps", "ocr_vqa", "vqav2"]
# Table 1 of the paper, InstructBLIP with Vicuna-7B.
TABLE_1 = {
    **{"nocaps": 123.1, "flickr30k": 82.4, "gqa": 49.2, "vsr": 54.3, "iconqa": 43.1},
    **{"textvqa": 50.1, "visdial": 45.2, "hateful_memes": 59.6, "vizwiz": 34.5},
    **{"scienceqa": 60.5, "msvd_qa": 41.8, "msrvtt_qa": 22.1, "ivqa": 52.2},
}


def test_all_13_benchmarks_and_the_held_in_sets_have_one():
    assert len(HELD_OUT) == 13
    assert set(shipped_protocols()) == {*HELD_OUT, *HELD_IN}


@pytest.mark.parametrize("name", [*HELD_OUT, *HELD_IN])
def test_every_value_is_marked(name):
    protocol = shipped_protocols()[name]
    assert {"split", "prompts"} <= set(protocol.sources)
    file = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())

    def marked(value, key):
        if key in protocol.sources:
            return True
        within = value.items() if isinstance(value, dict) else [("", None)]
        return all(name and marked(own, f"{key}.{name}") for name, own in within)

    assert all(marked(value, key) for key, value in file["evaluation"].items()), name
    assert protocol.split in catalog.get(name).splits
    assert protocol.prompts == catalog.get(name).prompts
    for way in protocol.ways.values():
        assert way.forms is None or set(way.forms) <= set(protocol.prompts)


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_papers_figures_stand_beside(name):
    table = shipped_protocols()[name].table_1
    assert table["InstructBLIP Vicuna-7B"] == TABLE_1[name]
    for family in ("BLIP-2", "InstructBLIP"):
        rows = [who for who in table if who.startswith(family)]
        assert len(rows) == 4


def test_ways_of_the_paper():
    """Ranked: ScienceQA, IconQA, HatefulMemes, VisDial, MSVD-QA, MSRVTT-QA (and VSR, which is
    ours); the others are generated."""
    ranked = {
        name
        for name in HELD_OUT
        if any(way.answering == "rank" for way in shipped_protocols()[name].ways.values())
    }
    names = {"scienceqa", "iconqa", "hateful_memes", "visdial", "msvd_qa", "msrvtt_qa", "vsr"}
    assert ranked == names
    assert shipped_protocols()["vsr"].source_of("", "answering") == "ours"
    gqa = shipped_protocols()["gqa"]
    assert gqa.source_of("", "decoding.beams") == "released code"
    assert gqa.source_of("", "length") == "ours"


OWN = """
name: signs
task: image_question_answering
reader: question_answer
role: held_out_unseen
{evaluation}
splits: {{test: {{files: [[signs.jsonl]]}}}}
prompts: {{visual_question_answering: "{{question}} Short answer:"}}
"""


def prepared(tmp_path, evaluation):
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True, exist_ok=True)
    noise(0).save(raw / "images/a.png")
    row = {"image": "a.png", "question": "Is it red?", "answer": "yes", "id": "1"}
    (raw / "signs.jsonl").write_text(json.dumps(row) + "\n")
    file = tmp_path / "signs.yaml"
    file.write_text(OWN.format(evaluation=evaluation))
    prepare(str(file), raw, tmp_path / "signs", progress=False)
    return file, tmp_path / "signs"


def test_a_dataset_of_ones_own_carries_its_protocol_with_its_shards(tmp_path):
    evaluation = (
        'evaluation: {answering: rank, candidates: {"yes": ["yes", "true"], "no": ["no"]}, '
        "metric: accuracy}"
    )
    file, shards = prepared(tmp_path, evaluation)
    file.unlink()
    protocol = protocol_of(shards)
    (way,) = protocol.ways.values()
    assert (way.answering, way.metric) == ("rank", "accuracy")
    assert way.candidates == {"yes": ["yes", "true"], "no": ["no"]}
    assert result_name(shards, next(iter(protocol.ways))) == "signs"


def test_a_metric_alone_is_enough(tmp_path):
    _, shards = prepared(tmp_path, "metric: VQA accuracy")
    assert protocol_of(shards).ways[""].metric == "VQA accuracy"


def test_a_file_may_be_named_instead(tmp_path):
    file, shards = prepared(tmp_path, "metric: none of ours")
    with pytest.raises(ValueError, match="nothing says how 'signs' is evaluated"):
        protocol_of(shards)
    with pytest.raises(ValueError, match="evaluation: missing"):
        protocol_of(shards, file)
    file.write_text(OWN.format(evaluation="metric: exact match"))
    assert protocol_of(shards, file).ways[""].metric == "exact match"


def test_choices_of_ones_own(tmp_path):
    evaluation = "evaluation: {answering: rank, candidates: choices, metric: accuracy}\n"
    evaluation += "reader_options: {choices: options}"
    file, _ = prepared(tmp_path, "metric: exact match")
    asks = OWN.format(evaluation=evaluation).replace("{question} ", "{question} {options} ")
    file.write_text(asks)
    raw = tmp_path / "raw"
    row = {"image": "a.png", "question": "Which?", "answer": "cat", "options": ["dog", "cat"]}
    wrong = row | {"answer": "cow"}
    (raw / "signs.jsonl").write_text("\n".join(map(json.dumps, [row, row, row, wrong])))
    report = prepare(str(file), raw, tmp_path / "chosen", progress=False, budget=0.5)
    assert (report.written, report.quarantined) == (3, 1)
    first = next(read_records(tmp_path / "chosen"))
    assert first.instructions == ("Which? (a) dog (b) cat Short answer:",)
    assert first.details == {"choices": ["dog", "cat"], "correct_choice": 1}
    quarantine = (tmp_path / "chosen/quarantine.jsonl").read_text()
    assert "the answer 'cow' is none of the choices" in quarantine


def test_a_file_that_is_not_the_known_one_is_named(tmp_path):
    digest = "0" * 64
    file, _ = prepared(tmp_path, "metric: exact match")
    content = OWN.format(evaluation="metric: exact match")
    hashed = f"[[signs.jsonl]], sha256: {{signs.jsonl: '{digest}'}}"
    file.write_text(content.replace("[[signs.jsonl]]", hashed))
    prepare(str(file), tmp_path / "raw", tmp_path / "known", progress=False)
    _, notes, _ = _about(tmp_path / "known", protocol_of(tmp_path / "known"), 1)
    assert any("signs.jsonl is not the known file" in note for note in notes)
    _, notes, _ = _about(tmp_path / "signs", protocol_of(tmp_path / "signs"), 1)
    assert notes == ()
