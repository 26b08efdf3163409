"""Writes the toy world to disk in the official file layouts of the datasets it stands for.

    DIR/coco/images/train2014/COCO_train2014_000000000001.jpg ...
    DIR/coco/annotations/{coco_karpathy_train,dataset_coco}.json
    DIR/vqav2/{v2_OpenEnded_mscoco_train2014_questions,v2_mscoco_train2014_annotations}.json
    DIR/aokvqa/aokvqa_v1p0_train.json
    DIR/llava/conversation_58k.json
    DIR/gqa/{testdev,challenge}_balanced_questions.json, DIR/gqa/images/<imageId>.jpg
    DIR/text/{conversations.json, corpus.txt}, DIR/processor/ (tokenizers),
    DIR/toy.json (what was written, last)

GQA's `testdev` holds unseen scenes of attribute pairs that training has, `challenge` scenes with
held-out pairs. Everything is a function of the seed.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ibtrain.data.instructions import (
    TEMPLATE_DIRECTORY,
    format_options,
    template_version,
    templates,
)
from ibtrain.data.toy import world
from ibtrain.data.toy.tokenizers import write_processor

TOY_VERSION = 1  # raise it when the same arguments give other files
QUESTIONS_PER_TRAINING_IMAGE = 5
QUESTIONS_PER_TEST_IMAGE = 2
_MARKER = "toy.json"
_COCO_IMAGES = "coco/images/train2014"
_QUESTION_TYPES = {
    "color": ("what color is the", "other"),
    "shape": ("what shape is the", "other"),
    "count": ("how many", "number"),
    "position": ("where is the", "other"),
    "word": ("what word", "other"),
}


@dataclass(frozen=True)
class _Sample:
    """One training image and all that is said about it."""

    image_id: int
    captions: list[str]
    questions: list[world.Question]
    choice_question: world.Question
    conversation: list[tuple[str, str]]

    @property
    def file_name(self) -> str:
        return f"COCO_train2014_{self.image_id:012d}.jpg"


def write_toy(
    directory: Path,
    *,
    seed: int = 0,
    train_images: int = 3000,
    test_images: int = 300,
    num_query_tokens: int = 32,
) -> dict[str, int]:
    """Writes the toy world; an interrupted call leaves nothing at `directory`.

    Args:
        directory: absent or empty, or a toy written with the same arguments (nothing is done then).
        seed: gives everything that is random.
        train_images: images of COCO, which VQAv2, A-OKVQA and LLaVA share.
        test_images: images of each of GQA's two splits.
        num_query_tokens: query tokens of the model, for the processor in `directory`/processor.

    Returns:
        The number of images and of annotations by dataset and split.

    Raises:
        FileExistsError: `directory` holds something else.
        ValueError: a count below 1.
    """
    if min(train_images, test_images) < 1:
        raise ValueError(f"train_images={train_images}, test_images={test_images}: at least 1 each")
    arguments = {
        "toy_version": TOY_VERSION,
        "templates": template_version(),
        "seed": seed,
        "train_images": train_images,
        "test_images": test_images,
        "num_query_tokens": num_query_tokens,
    }
    counts = _already_written(directory, arguments)
    if counts is not None:
        return counts
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.writing-", dir=directory.parent.resolve())
    )
    try:
        counts = _write(temporary, seed, train_images, test_images)
        write_processor(
            temporary / "text/corpus.txt",
            temporary / "processor",
            image_size=world.IMAGE_SIZE,
            num_query_tokens=num_query_tokens,
        )
        _write_json(temporary / _MARKER, {"arguments": arguments, "counts": counts})
        temporary.chmod(0o777 & ~_umask())
        if directory.is_dir():
            directory.rmdir()  # empty, as _already_written saw; refuses if that has changed
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _already_written(directory: Path, arguments: dict[str, Any]) -> dict[str, int] | None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    marker = directory / _MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{directory} is not empty and holds no toy; name another directory or remove this one"
        )
    try:
        written = json.loads(marker.read_text(encoding="utf-8"))
        same, counts = written["arguments"] == arguments, written["counts"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{marker} cannot be read; remove {directory}") from error
    if not same:
        raise FileExistsError(
            f"{directory} holds a toy written with {written['arguments']}, asked for {arguments}; "
            "name another directory or remove this one"
        )
    return dict(counts)


def _write(root: Path, seed: int, train_images: int, test_images: int) -> dict[str, int]:
    samples = _training_samples(root, seed, train_images)
    counts = {
        "coco_images": len(samples),
        "coco_caption": _write_captions(root / "coco/annotations", samples),
        "vqav2": _write_vqav2(root / "vqav2", samples),
        "aokvqa": _write_aokvqa(root / "aokvqa", samples),
        "llava_conversation": _write_llava(root / "llava", samples),
        "toy_text": _write_text(root / "text", samples),
        "gqa_testdev": _write_gqa(root / "gqa", "testdev", seed, test_images, held_out=False),
        "gqa_challenge": _write_gqa(root / "gqa", "challenge", seed, test_images, held_out=True),
    }
    _write_corpus(root / "text", samples)
    return counts


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _balanced(
    candidates: list[world.Question], used: Counter[str], limit: int
) -> list[world.Question]:
    """Up to `limit` different questions, those of the kinds asked least so far first."""
    different = {candidate.question: candidate for candidate in candidates}
    chosen = sorted(different.values(), key=lambda candidate: used[candidate.kind])[:limit]
    used.update(candidate.kind for candidate in chosen)
    return chosen


def _training_samples(root: Path, seed: int, count: int) -> list[_Sample]:
    (root / _COCO_IMAGES).mkdir(parents=True)
    used: Counter[str] = Counter()
    used_with_choices: Counter[str] = Counter()
    samples = []
    for image_id in range(1, count + 1):
        random = Random(f"train/{seed}/{image_id}")
        scene = world.sample_scene(random, held_out=False)
        asked = world.questions(scene, random) + world.questions(scene, random)
        sample = _Sample(
            image_id,
            world.captions(scene),
            _balanced(asked, used, QUESTIONS_PER_TRAINING_IMAGE),
            _balanced(world.questions(scene, random), used_with_choices, 1)[0],
            world.conversation(scene, random),
        )
        image = world.render(scene, random)
        image.save(root / _COCO_IMAGES / sample.file_name, quality=95, subsampling=0)
        samples.append(sample)
    return samples


def _write_captions(directory: Path, samples: list[_Sample]) -> int:
    rows = [
        {
            "image": f"train2014/{sample.file_name}",
            "caption": caption,
            "image_id": f"coco_{sample.image_id}",
        }
        for sample in samples
        for caption in sample.captions
    ]
    _write_json(directory / "coco_karpathy_train.json", rows)
    images = []
    sentence_id = 0
    for index, sample in enumerate(samples):
        sentences = []
        for caption in sample.captions:
            words = caption.replace(",", "").replace(":", "").split()
            sentences.append(
                {"raw": caption, "tokens": words, "sentid": sentence_id, "imgid": index}
            )
            sentence_id += 1
        images.append(
            {
                "filepath": "train2014",
                "filename": sample.file_name,
                "cocoid": sample.image_id,
                "imgid": index,
                "split": "train",
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    _write_json(directory / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return len(rows)


def _write_vqav2(directory: Path, samples: list[_Sample]) -> int:
    asked = []
    answered = []
    for sample in samples:
        for index, question in enumerate(sample.questions):
            question_id = sample.image_id * 1000 + index
            asked.append(
                {
                    "image_id": sample.image_id,
                    "question": question.question,
                    "question_id": question_id,
                }
            )
            question_type, answer_type = _QUESTION_TYPES[question.kind]
            answers = [
                {"answer": question.answer, "answer_confidence": "yes", "answer_id": number}
                for number in range(1, 11)
            ]
            answered.append(
                {
                    "question_type": question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": answers,
                    "image_id": sample.image_id,
                    "answer_type": answer_type,
                    "question_id": question_id,
                }
            )
    head = {"info": {"description": "toy world"}, "data_type": "mscoco"}
    head |= {"data_subtype": "train2014", "license": {"name": "", "url": ""}}
    _write_json(
        directory / "v2_OpenEnded_mscoco_train2014_questions.json",
        head | {"task_type": "Open-Ended", "questions": asked},
    )
    _write_json(
        directory / "v2_mscoco_train2014_annotations.json", head | {"annotations": answered}
    )
    return len(asked)


def _write_aokvqa(directory: Path, samples: list[_Sample]) -> int:
    rows = []
    for sample in samples:
        question = sample.choice_question
        rows.append(
            {
                "split": "train",
                "image_id": sample.image_id,
                "question_id": f"toy{sample.image_id:08d}",
                "question": question.question,
                "choices": list(question.choices),
                "correct_choice_idx": question.choices.index(question.answer),
                "direct_answers": [question.answer] * 10,
                "difficult_direct_answer": False,
                "rationales": [question.full_answer] * 3,
            }
        )
    _write_json(directory / "aokvqa_v1p0_train.json", rows)
    return len(rows)


def _write_llava(directory: Path, samples: list[_Sample]) -> int:
    rows = []
    for sample in samples:
        turns = []
        for index, (human, assistant) in enumerate(sample.conversation):
            if index == 0:
                before = sample.image_id % 2 == 0
                human = f"<image>\n{human}" if before else f"{human}\n<image>"  # noqa: PLW2901
            turns.append({"from": "human", "value": human})
            turns.append({"from": "gpt", "value": assistant})
        identity = f"{sample.image_id:012d}"
        rows.append({"id": identity, "image": f"{identity}.jpg", "conversations": turns})
    _write_json(directory / "conversation_58k.json", rows)
    return len(rows)


def _write_text(directory: Path, samples: list[_Sample]) -> int:
    """Text alone in LLaVA's form: a scene told in words, a question about it, the answer.

    The real language models come to BLIP-2 knowing their language; this is where the toy's learns
    it (it never sees an image with a question before instruction tuning).
    """
    directory.mkdir()
    rows = []
    for sample in samples:
        random = Random(f"text/{sample.image_id}")
        phrasings = templates("visual_question_answering").templates
        pairs = [
            (random.choice(phrasings).format(question=question.question), question.answer)
            for question in sample.questions
        ]
        pairs += sample.conversation[-1:]
        for number, (human, assistant) in enumerate(pairs):
            turns = [
                {"from": "human", "value": f"{random.choice(sample.captions)}. {human}"},
                {"from": "gpt", "value": assistant},
            ]
            rows.append({"id": f"{sample.image_id}-{number}", "conversations": turns})
    _write_json(directory / "conversations.json", rows)
    return len(rows)


def _write_gqa(directory: Path, split: str, seed: int, count: int, *, held_out: bool) -> int:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    used: Counter[str] = Counter()
    rows = {}
    for number in range(1, count + 1):
        random = Random(f"{split}/{seed}/{number}")
        scene = world.sample_scene(random, held_out=held_out)
        image_id = f"{'n' if held_out else 't'}{number:07d}"
        for index, question in enumerate(
            _balanced(world.questions(scene, random), used, QUESTIONS_PER_TEST_IMAGE)
        ):
            binary = question.answer in {"yes", "no"}
            rows[f"{'2' if held_out else '1'}{number:07d}{index}"] = {
                "semantic": [],
                "entailed": [],
                "equivalent": [],
                "question": question.question,
                "imageId": image_id,
                "isBalanced": True,
                "groups": {"global": question.kind, "local": f"{image_id}-{question.kind}"},
                "answer": question.answer,
                "semanticStr": "",
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {
                    "detailed": question.kind,
                    "semantic": "attr",
                    "structural": "verify" if binary else "query",
                },
                "fullAnswer": question.full_answer,
            }
        image = world.render(scene, random)
        image.save(directory / "images" / f"{image_id}.jpg", quality=95, subsampling=0)
    _write_json(directory / f"{split}_balanced_questions.json", rows)
    return len(rows)


def _write_corpus(directory: Path, samples: list[_Sample]) -> None:
    """The text that training shows, for the tokenizers: one sentence a line."""
    lines = []
    for sample in samples:
        lines.extend(sample.captions)
        for question in sample.questions:
            lines += [question.question, question.answer]
        lines.append(format_options(list(sample.choice_question.choices)))
        for turn in sample.conversation:
            lines.extend(turn)
    for path in sorted(TEMPLATE_DIRECTORY.glob("*.yaml")):
        file = templates(path.stem)
        empty = dict.fromkeys(file.slots, "")
        lines.extend(" ".join(text.format_map(empty).split()) for text in file.templates)
    (directory / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
