"""The datasets: task category, role, metric, files, published size, prompt and where to get them.

Sources: InstructBLIP (arXiv 2305.06500), section 2.1, appendix C (sizes) and appendix E (prompts).

Raw files. `--raw DIR` names the folder of one dataset. An annotation file is looked for in DIR and
in DIR/annotations. COCO images, which several datasets share, are looked for in DIR/images,
DIR/../coco/images and DIR, in this order, so one copy of COCO beside the annotations of VQAv2,
A-OKVQA and LLaVA serves them all.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

Role = Literal["held_in", "held_out_seen", "held_out_unseen"]
COCO_IMAGE_ROOTS = ("images", "../coco/images", ".")


@dataclass(frozen=True)
class DatasetEntry:
    """What ibtrain knows of one dataset.

    `split_files` maps a split to alternatives, each a set of files that belong together; the first
    alternative that is there is read, and `files` is every name among them. `sizes` are published
    counts of samples by split. `image_roots` are folders relative to the raw directory. `templates`
    names the instruction templates that its examples are rendered with (none where the annotations
    bring instructions).
    """

    name: str
    task: str
    role: Role
    metric: str
    reader: str
    split_files: dict[str, tuple[tuple[str, ...], ...]]
    evaluation_prompt: str
    source: str
    sizes: dict[str, int] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    image_roots: tuple[str, ...] = ("images", ".")
    files: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = [
            name for choices in self.split_files.values() for files in choices for name in files
        ]
        object.__setattr__(self, "files", tuple(dict.fromkeys(names)))  # as the class is frozen

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split; the first is the default."""
        return tuple(self.split_files)


_CAPTION_PROMPT = "A short image description:"
_QUESTION_PROMPT = "Question: {question} Short answer:"

_ENTRIES = (
    DatasetEntry(
        name="coco_caption",
        task="captioning",
        role="held_in",
        metric="CIDEr",
        reader="caption",
        split_files={
            split: ((f"coco_karpathy_{split}.json",), ("dataset_coco.json",))
            for split in ("train", "val", "test")
        },
        evaluation_prompt=_CAPTION_PROMPT,
        source="images: https://cocodataset.org; annotations: Karpathy's split "
        "(https://cs.stanford.edu/people/karpathy/deepimagesent/) or its LAVIS form",
        sizes={"train": 566_747, "val": 5_000, "test": 5_000},
        templates=("captioning",),
        image_roots=COCO_IMAGE_ROOTS,
    ),
    DatasetEntry(
        name="vqav2",
        task="image_question_answering",
        role="held_in",
        metric="VQA accuracy",
        reader="vqa",
        split_files={
            split: (
                (
                    f"v2_OpenEnded_mscoco_{split}2014_questions.json",
                    f"v2_mscoco_{split}2014_annotations.json",
                ),
            )
            for split in ("train", "val")
        },
        evaluation_prompt=_QUESTION_PROMPT,
        source="https://visualqa.org/download.html; images are COCO's",
        sizes={"train": 443_757, "val": 214_354},
        templates=("visual_question_answering",),
        image_roots=COCO_IMAGE_ROOTS,
    ),
    DatasetEntry(
        name="aokvqa",
        task="knowledge_question_answering",
        role="held_in",
        metric="multiple-choice accuracy, direct-answer accuracy",
        reader="aokvqa",
        split_files={split: ((f"aokvqa_v1p0_{split}.json",),) for split in ("train", "val")},
        evaluation_prompt=_QUESTION_PROMPT,
        source="https://allenai.org/project/a-okvqa/home; images are COCO's",
        sizes={"train": 17_056, "val": 1_145},
        templates=("visual_question_answering", "multiple_choice"),
        image_roots=COCO_IMAGE_ROOTS,
    ),
    DatasetEntry(
        name="llava_conversation",
        task="llava_instruct",
        role="held_in",
        metric="none (training only)",
        reader="conversation",
        split_files={"train": (("conversation_58k.json",),)},
        evaluation_prompt="{question}",
        source="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K; "
        "images are COCO train2014 (or train2017)",
        sizes={"train": 58_000},
        image_roots=COCO_IMAGE_ROOTS,
    ),
    DatasetEntry(
        name="gqa",
        task="visual_reasoning",
        role="held_out_unseen",
        metric="exact match",
        reader="gqa",
        split_files={
            split: ((f"{split}_balanced_questions.json",),)
            for split in ("testdev", "val", "train", "challenge")
        },
        evaluation_prompt=_QUESTION_PROMPT,
        source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        sizes={"testdev": 12_578, "val": 132_062, "train": 943_000},
    ),
)
_TOY_TEXT = DatasetEntry(
    name="toy_text",
    task="text",
    role="held_in",
    metric="none (training only)",
    reader="conversation",
    split_files={"train": (("conversations.json",),)},
    evaluation_prompt="{question}",
    source="`ibtrain data toy` (text alone; it teaches the toy's language model its language)",
)
_BY_NAME = {entry.name: entry for entry in (*_ENTRIES, _TOY_TEXT)}


def entries() -> tuple[DatasetEntry, ...]:
    """Every published dataset, held-in first."""
    return _ENTRIES


def get(name: str) -> DatasetEntry:
    """The entry called `name`; ValueError naming the nearest name where there is none."""
    entry = _BY_NAME.get(name)
    if entry is not None:
        return entry
    nearest = get_close_matches(name, _BY_NAME, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(_BY_NAME)}"
    raise ValueError(f"no dataset is called {name!r}; {hint}")
