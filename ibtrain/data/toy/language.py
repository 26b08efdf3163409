"""What the toy's language model learns its language from, and the tokenizers their words.

text/conversations.json (LLaVA's form without images) and text/corpus.txt (one sentence a line)
"""

from collections import Counter
from string import Formatter

from ibtrain.data import catalog
from ibtrain.data.instructions import TEMPLATE_DIRECTORY, format_options, templates
from ibtrain.data.toy.coco import CocoPictures
from ibtrain.data.toy.knowledge import knowledge_questions, reasoning
from ibtrain.data.toy.llava import described_picture, picture_conversation, turns_of
from ibtrain.data.toy.pictures import Picture, ToyWriter, write_json
from ibtrain.data.toy.question_answering import picture_questions
from ibtrain.data.toy.text import Question, captions, questions


def write(toy: ToyWriter, coco: CocoPictures) -> None:
    """Writes both files; everything else that is trained on has been said by now."""
    _write_conversations(toy, coco.train)
    lines = list(toy.said)
    for path in sorted(TEMPLATE_DIRECTORY.glob("*.yaml")):
        lines += [_without_slots(text) for text in templates(path.stem).templates]
    for entry in catalog.entries():
        lines += [_without_slots(prompt) for prompt in entry.prompts.values()]
    path = toy.folder("toy_text") / "corpus.txt"
    path.write_text("\n".join(line for line in lines if line) + "\n", encoding="utf-8")


def _without_slots(text: str) -> str:
    return " ".join("".join(part for part, _, _, _ in Formatter().parse(text)).split())


def _write_conversations(toy: ToyWriter, pictures: list[Picture]) -> None:
    """Text alone in LLaVA's form: a scene told in words, a question about it, the answer.

    The real language models come to BLIP-2 knowing their language; this is where the toy's learns
    it (it never sees an image with a question before instruction tuning).
    """
    used: Counter[str] = Counter()
    rows = []
    for picture in pictures:
        random = picture.random("text")
        told = captions(picture.scene)
        pairs = [
            (_phrased(picture, "visual_question_answering", question), question.answer)
            for question in picture_questions(picture, used)
        ]
        pairs += picture_conversation(picture)[-1:]
        pairs.append(_other_task(picture))
        for number, (human, assistant) in enumerate(pairs):
            turns = turns_of([(f"{random.choice(told)}. {human}", assistant)], random=None)
            rows.append({"id": f"{picture.number}-{number}", "conversations": turns})
    write_json(toy.folder("toy_text") / "conversations.json", rows)
    toy.count("toy_text", "train", len(rows))


def _phrased(picture: Picture, form: str, question: Question) -> str:
    """The question in one of the form's templates, each of whose slots it fills."""
    words = [] if picture.scene.word is None else [picture.scene.word.text]
    slots = {
        "question": question.question,
        "answer": question.answer,
        "options": format_options(question.choices),
        "ocr_tokens": ", ".join(words),
    }
    template = picture.random(f"{form}/{question.question}").choice(templates(form).templates)
    return template.format_map(slots)


def _other_task(picture: Picture) -> tuple[str, str]:
    """(request, answer) of a task other than VQAv2's, by turns."""
    random = picture.random("other task")
    question = random.choice(questions(picture.scene, random))
    known = (knowledge_questions(picture.scene, random) or [question])[0]
    turn = picture.number % 6
    if turn == 0:
        return _phrased(picture, "question_generation", question), question.question
    if turn == 1:
        return _phrased(picture, "multiple_choice", question), question.answer
    if turn == 2:
        return reasoning(picture.scene, random)
    if turn == 3:
        return described_picture(picture)
    if turn == 4 and picture.scene.word is not None:
        return _phrased(picture, "question_answering_with_reading", known), known.answer
    return _phrased(picture, "visual_question_answering", known), known.answer
