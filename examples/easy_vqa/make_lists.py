"""The data set easy-VQA as lists that ibtrain reads.

    pip install easy-vqa
    python examples/easy_vqa/make_lists.py DIR

The package (MIT, Victor Zhou) has 4,000 drawings for training and 1,000 for testing with 38,575 and
9,673 questions. Writes DIR/train.jsonl, DIR/test.jsonl, the images (DIR/images/train/0.png and so
on) and DIR/processor, tokenizers made of the training questions and the instructions around them.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import easy_vqa

from ibtrain.data.instructions import templates
from ibtrain.data.toy.tokenizers import write_processor

IMAGE_SIZE = 64
QUERY_TOKENS = 8
Questions = tuple[list[str], list[str], list[int]]


def write_split(
    directory: Path, split: str, questions: Questions, images: dict[int, str]
) -> tuple[int, int]:
    """Writes one split; how many questions and images it has."""
    folder = directory / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in images.items():
        shutil.copyfile(path, folder / f"{number}.png")
    rows = [
        {
            "id": f"{split}-{index}",
            "image": f"{split}/{number}.png",
            "question": question,
            "answer": answer,
        }
        for index, (question, answer, number) in enumerate(zip(*questions, strict=True))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return len(rows), len(images)


def write_tokenizers(directory: Path) -> None:
    """Both tokenizers, of what is asked and answered in training."""
    questions, answers, _ = easy_vqa.get_train_questions()
    pairs = dict.fromkeys(zip(questions, answers, strict=True))
    around = templates("visual_question_answering").templates
    lines = [around[0].format(question=question) + f" {answer}" for question, answer in pairs]
    lines += [template.format(question=questions[0]) for template in around]
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    write_processor(
        corpus, directory / "processor", image_size=IMAGE_SIZE, num_query_tokens=QUERY_TOKENS
    )


def main() -> int:
    """Writes both splits to the directory that is named."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    directory = Path(sys.argv[1])
    splits: dict[str, tuple[Callable[[], Questions], Callable[[], dict[int, str]]]] = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    for split, (questions, images) in splits.items():
        count, pictures = write_split(directory, split, questions(), images())
        print(f"{split}: {count:,} questions about {pictures:,} images")
    write_tokenizers(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
