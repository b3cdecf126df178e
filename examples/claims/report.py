"""The pages docs/claims.md and docs/claims/*.md, generated from the records and the claims."""

import os
import re
from pathlib import Path

from .answers import ANSWERS
from .laboratory import DOCS, VERDICTS, all_claims, filled, record_path

HEAD = """\
# The theory, claim by claim

Each claim of the theory of contrastive learning is a short program that prints the published or exact value, the value
measured here and a verdict, and draws a picture. `python examples/claims run 3` runs claim 3, in less than a minute,
`run all` all of them, and `list` lists them; `--size fast` takes seconds, on generated digits. Records and pictures are in
`runs/claims`, those of the fast size in `runs/claims-fast`. Each claim has a page: statement, mathematics, picture, verdict,
results and what to try next.

- *reproduced*: exact values agree to the digits given, or published values lie within the standard deviation;
- *qualitatively reproduced*: the effect appears for every seed, with different numbers at this scale;
- *not reproduced*: the effect does not appear here; the page describes what was found instead.

h is the encoder's output, and z = g(h) the head's, which the loss compares. *Alignment* is the mean squared distance of the
two views of an image in z; *uniformity* is lower the more evenly z is spread. The *probe* is a linear classifier fitted to
frozen h or z, *kNN* a vote of the nearest training images, both by the share of test images that they get right.

Results are mean ± standard deviation over the seeds, three by default. The settings of claims 5 to 9, 13 and 15 were
chosen by runs with seeds 0 to 2; their records use other seeds, chosen beforehand. Seconds are wall-clock times of
all seeds together. Two claims ran at a time, each on its own core, less what other programs took of it. `run all`
measures as many claims at the same time as there are cores. `--full` is for a GPU and has not been run yet.
"""
FOOT = """\
`python examples/claims report --docs` generates these pages from the records, the JSON files in `docs/claims`.
"""


def pages(records, folder, overview):
    """{path: Markdown} for {name: Record}: the overview at the path of that name, and in `folder`, beside its record and
    picture, a page of each claim."""
    claims = [module.CLAIM for module in all_claims()]
    answers = {name: answer(records) for name, answer in ANSWERS.items()}
    made = {page_path(folder, claim): claim_page(claim, records, folder, overview, answers.get(claim.name, ""))
            for claim in claims if claim.name in records}
    worked = "".join(f"- [{title_of(answer)}]({link(page_path(folder, claim), overview)})\n"
                     for claim in claims if (answer := answers.get(claim.name)))
    exercises = f"Worked exercises, with the numbers of the records:\n\n{worked}\n" if worked else ""
    return {Path(overview): f"{HEAD}\n{summary(claims, records, folder, overview)}\n{exercises}{FOOT}", **made}


def summary(claims, records, folder, overview):
    """One row a claim, linked to its page and picture; of the reason for its verdict, what stands before the first ; or ."""
    lines = ["| | claim | verdict | what was found | data | seconds |", "|---|---|---|---|---|---|"]
    for claim in claims:
        record = records.get(claim.name)
        page = page_path(folder, claim)
        if record:
            drawn = page.with_suffix(".png")             # there is none without matplotlib
            picture = f" ([picture]({link(drawn, overview)}))" if drawn.exists() else ""
            found = re.split(r"; |\. (?=[A-Z])", record.reason)[0]
            lines.append(f"| {claim.number} | [{claim.title}]({link(page, overview)}){picture} | {record.verdict} | {found} "
                         f"| {record.data} | {sum(record.seconds):.0f} |")
        else:
            lines.append(f"| {claim.number} | {claim.title} | not yet run | | | |")
    counts = [f"{sum(record.verdict == verdict for record in records.values())} {verdict}" for verdict in VERDICTS]
    minutes = sum(sum(record.seconds) for record in records.values()) / 60
    these = f"All {len(claims)}" if len(records) == len(claims) else f"These {len(records)}"
    return "\n".join([*lines, "", f"{', '.join(counts)}. {these} took {minutes:.0f} minutes in "
                      "all, and two at a time about half as long.", ""])


def claim_page(claim, records, folder, overview, answer):
    """A claim and what was found, with links to the pages before and after it."""
    record = records[claim.name]
    path = page_path(folder, claim)
    picture = f"![{claim.title}]({path.stem}.png)\n\n" if path.with_suffix(".png").exists() else ""
    experiment = link(Path(__file__).with_name(f"{claim.name}.py"), path)
    source = claim.source.replace("](", f"]({link(DOCS, path)}/")
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in record.rows())
    seeds = f"{len(record.seeds)} seed{'s' * (len(record.seeds) > 1)}"
    others = [f"{word}: [{other.number}. {other.title}]({page_path(folder, other).name})"
              for word, step in (("Previous", -1), ("Next", 1)) for other in (module.CLAIM for module in all_claims())
              if other.number == claim.number + step and other.name in records]
    return f"""\
# {claim.number}. {claim.title}

{filled(claim.statement)}

{claim.mathematics.strip()}

{picture}{filled(f"**{record.verdict[0].upper() + record.verdict[1:]}{record.caution}:** {record.reason.rstrip('.')}.")}

| | published or exact | measured, {seeds} |
|---|---|---|
{table}

{trainings(record)}`{record.command}` · {record.data} · {sum(record.seconds):.0f} s for {seeds} ·
[experiment]({experiment}) · [record]({path.stem}.json) · {source}

{filled(f"*Try next:* {claim.next}")}

{f"{answer}{chr(10)}" if answer else ""}{chr(10).join(f"- {other}" for other in others)}
- [All claims]({link(overview, path)})
"""


def trainings(record):
    """How long each seed's models were trained, as a paragraph; empty where none was."""
    lengths = [f"{steps:,} steps of {batch:,} from {n:,} examples" for steps, batch, n in record.trained]
    return filled(f"Each training: {' or '.join(lengths)}.") + "\n\n" if lengths else ""


def title_of(answer):
    """The question of "## Exercise: question?"."""
    question = answer.partition(": ")[2].partition("\n")[0]
    return question[0].upper() + question[1:]


def page_path(folder, claim):
    """folder/NN-name.md"""
    return record_path(folder, claim.name).with_suffix(".md")


def link(target, page):
    """The path of a file, relative to the folder of the page that links to it."""
    return os.path.relpath(target, Path(page).parent)
