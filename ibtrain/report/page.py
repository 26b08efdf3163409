"""`ibtrain report RUN ...`: the page, from its sections."""

from collections.abc import Sequence
from pathlib import Path

from ibtrain import charts, pages
from ibtrain.charts import legend
from ibtrain.data.mixture.preview_page import CARD_STYLE, MOST_SAMPLES, cards
from ibtrain.defaults import REPORT_SAMPLES
from ibtrain.pages import text
from ibtrain.report import curves, sections
from ibtrain.report.run import ReportedRun, check_run, read_run
from ibtrain.report.samples import (
    Benchmark,
    Evaluation,
    evaluations_in,
    read_evaluation,
    samples_of,
)

MOST_RUNS = charts.COLOURS


def write_report(
    paths: Sequence[Path],
    out: Path,
    evaluations: Sequence[Path] = (),
    samples: int = REPORT_SAMPLES,
) -> list[ReportedRun]:
    """Writes one page of one run or several, atomically; nothing else is written.

    Args:
        paths: run directories, of runs that are over, go on or were killed.
        out: the HTML file.
        evaluations: directories that `ibtrain evaluate` wrote, beside those within the runs.
        samples: how many of each dataset of the first run's mixture are shown; 0 for none.

    Returns:
        What was read.

    Raises:
        ValueError: a path is no run directory, or there are too many, or `out` cannot be written.
        OSError: a file cannot be read or written.
    """
    unlike = list({path.resolve(): path for path in paths}.values())
    if not 1 <= len(unlike) <= MOST_RUNS:
        raise ValueError(f"{len(unlike)} runs; a page lays 1 to {MOST_RUNS} over each other")
    if not 0 <= samples <= MOST_SAMPLES:
        raise ValueError(f"{samples} samples of each dataset; 0 to {MOST_SAMPLES} can be shown")
    for path in unlike:
        check_run(path)
    for path in evaluations:
        if not path.is_dir():
            raise ValueError(f"the evaluation {path} is not there; give what --out of it named")
    pages.check_writable(out)
    runs = [read_run(path, label) for path, label in zip(unlike, _labels(unlike), strict=True)]
    found = [*evaluations, *(path for run in runs for path in evaluations_in(run.path))]
    pages.write_page(out, _page(runs, [read_evaluation(path) for path in found], samples))
    return runs


def _labels(paths: Sequence[Path]) -> list[str]:
    """The directories' names; as much of the paths as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _page(runs: Sequence[ReportedRun], evaluations: Sequence[Evaluation], samples: int) -> str:
    several = len(runs) > 1
    name = "Runs " + ", ".join(run.label for run in runs) if several else f"Run {runs[0].label}"
    if several:
        head = sections.runs_table(runs) + legend([run.label for run in runs])
    else:
        head = pages.facts(
            [("recipe", str(runs[0].value("name") or "unknown")), *sections.run_facts(runs[0])]
        )
    plans = "".join(
        (f"<h3>{text(run.label)}</h3>" if several else "") + sections.plan_section(run)
        for run in runs
        if run.plan is not None or not several
    )
    parts = [
        ("loss", "Loss", curves.loss_chart(runs)),
        ("curves", "Curves", curves.other_charts(runs)),
        ("datasets", "Loss by dataset", curves.dataset_charts(runs)),
        ("mixture", "Mixture", sections.mixture_section(runs)),
        ("evaluations", "Evaluation", _evaluations(evaluations)),
        ("samples", "Samples", _samples(runs[0], samples, several)),
        ("starts", "Starts", sections.starts_section(runs)),
        ("checkpoints", "Checkpoints", sections.checkpoints_section(runs)),
        ("quarantine", "Bad data", sections.quarantine_section(runs)),
        ("plan", "Plan and measurement", plans or "<p class=note>no run has a plan.json</p>"),
        ("recipe", "Recipe", sections.recipe_section(runs)),
        ("environment", "Environment", sections.environment_section(runs)),
    ]
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in parts)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>'
        f"{content}</section>\n"
        for key, heading, content in parts
    )
    return pages.page(
        name,
        f"{head}{_notes(runs, several)}<nav aria-label=sections>{links}</nav>",
        body,
        style=charts.STYLE + CARD_STYLE + _STYLE,
    )


def _notes(runs: Sequence[ReportedRun], several: bool) -> str:
    """What is missing or damaged."""
    items = "".join(
        f"<li><bdi>{text(f'{run.label}: ' if several else '')}{text(note)}</bdi></li>"
        for run in runs
        for note in run.notes
    )
    return f"<ul class=notes aria-label='what is missing'>{items}</ul>" if items else ""


def _samples(run: ReportedRun, samples: int, several: bool) -> str:
    """Samples of the first run's mixture, as it draws them."""
    if not samples:
        return "<p class=note>none were asked for</p>"
    if run.recipe is None:
        return "<p class=note>not shown, for the recipe cannot be read</p>"
    datasets, trouble = samples_of(run.recipe, samples)
    if trouble:
        return f"<p class=note>{text(trouble)}</p>"
    shown = "".join(
        f"<h3><bdi>{text(dataset.name)}</bdi></h3>"
        + (f"<p class='note trouble'>{text(dataset.trouble)}</p>" if dataset.trouble else "")
        + cards(dataset.samples)
        for dataset in datasets
    )
    whose = f" of {run.label}" if several else ""
    return f"<p class=note>of the mixture{text(whose)}, as training draws them</p>{shown}"


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return (
            "<p class=note>none in the run directory; <code>ibtrain report RUN --evaluation DIR"
            "</code> shows what <code>ibtrain evaluate RUN --out DIR</code> wrote</p>"
        )
    return "".join(_evaluation(one) for one in evaluations)


def _evaluation(evaluation: Evaluation) -> str:
    step = "" if evaluation.step is None else f", step {evaluation.step:,}"
    heading = f"<h3><bdi>{text(evaluation.path.name)}</bdi>{step}</h3>"
    if evaluation.trouble:
        return f"{heading}<p class='note trouble'>{text(evaluation.trouble)}</p>"
    rows = [
        [b.name, b.metric, "unknown" if b.value is None else f"{b.value:.2%}", b.interval, b.n]
        for b in evaluation.benchmarks
    ]
    columns = ["benchmark", "metric", "value", "95 % interval", "questions"]
    scores = pages.table(columns, rows, caption=f"scores of {evaluation.path.name}")
    return heading + scores + "".join(map(_answers, evaluation.benchmarks))


def _answers(benchmark: Benchmark) -> str:
    """What a model answered, in words and in the picture that the evaluation drew."""
    rows = [[a.question, a.prediction, a.accepted, a.correct] for a in benchmark.answers]
    columns = ["question", "answered", "accepted", "correct"]
    caption = f"answers to {benchmark.name}"
    words = pages.table(columns, rows, caption=caption, words=[1, 2]) if rows else ""
    picture = benchmark.picture
    shown = ""
    if picture is not None:
        alternative = f"images of {benchmark.name} with questions and answers"
        image = pages.image(picture.encoded, "jpeg", alternative, picture.width, picture.height)
        shown = f"<div class=sheet>{image}</div>"
    if not words and not shown:
        return ""
    return f"<details><summary>{text(caption)}</summary>{words}{shown}</details>"


_STYLE = """
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:18px;font-size:13px}
section{margin:30px 0}
section>h3{margin-top:20px;text-transform:none;font-size:14px;letter-spacing:0}
header table,section table{font-size:14px}
thead td{border-bottom:1px solid var(--line)}
section th[scope=row]{text-align:left}
.scroll td,.scroll th{text-align:left;padding-left:0;padding-right:18px}
.notes{margin:14px 0 0;padding:8px 14px;background:var(--card);border:1px solid var(--line);
border-left:3px solid var(--bad);border-radius:6px;font-size:13px}
.notes li{display:block;padding:2px 0;margin:0}
.keys span{display:inline-block;width:18px;height:9px;border-radius:2px;margin-right:4px}
.keys span+span{margin-left:14px}
.key-share{background:var(--accent)}.key-size{background:var(--grey)}
td.bar{width:46%;min-width:80px}
td.bar svg{display:block;width:100%;height:20px}
rect.share{fill:var(--accent)}rect.size{fill:var(--grey)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;
overflow-x:auto;white-space:pre;overflow-wrap:normal;max-height:40em}
.sheet{margin-top:10px;max-width:1100px}
section>details{margin-top:10px}
"""
