"""The page docs/claims.md, generated from the records and the claims."""

import os
from pathlib import Path

from .answers import ANSWERS
from .laboratory import VERDICTS, all_claims, filled, record_path

HEAD = """\
# The theory, claim by claim

Each claim of the theory of contrastive learning is a short program that prints the published or exact value, the value
measured here and a verdict, and draws a picture. `python examples/claims run 8` runs claim 8, `run all` all of them.
This page is generated from their records by `python examples/claims report --docs`. Results are mean ± standard
deviation over the seeds. Each section ends with its command, which names size and seeds where they differ from the
default: three seeds, minutes on two CPU cores. `--full` is for a GPU and has not been run yet.

- *reproduced*: exact values agree to the digits given, or published values lie within the standard deviation;
- *qualitatively reproduced*: the effect appears for every seed, with different numbers at this scale;
- *not reproduced*: the effect does not appear here; the section describes what was found instead.

The settings of claims 5 to 9, 13 and 15 were chosen by runs with seeds 0 to 2. Their records use other seeds, chosen
beforehand. Seconds are wall-clock times. Claims 5 to 15 ran with one thread beside other programs; on two idle cores they
take a third to a sixth of these times.
"""


def page(records, folder, beside):
    """Markdown of {name: Record}, whose pictures lie in `folder`, for a page in the folder `beside`."""
    claims = [module.CLAIM for module in all_claims()]
    sections = [section(claim, records[claim.name], record_path(folder, claim.name), beside)
                for claim in claims if claim.name in records]
    answers = [answer(records) for answer in ANSWERS]
    return "\n".join([HEAD, summary(claims, records), *sections, *filter(None, answers)])


def summary(claims, records):
    """One row a claim, linked to its section."""
    lines = ["| | claim | verdict | data | seconds |", "|---|---|---|---|---|"]
    for claim in claims:
        record = records.get(claim.name)
        found = (f"[{claim.title}](#{anchor(claim)}) | {record.verdict} | {record.data} | {sum(record.seconds):.0f}"
                 if record else f"{claim.title} | not yet run | | ")
        lines.append(f"| {claim.number} | {found} |")
    counts = [f"{sum(record.verdict == verdict for record in records.values())} {verdict}" for verdict in VERDICTS]
    minutes = sum(sum(record.seconds) for record in records.values()) / 60
    these = f"All {len(claims)}" if len(records) == len(claims) else f"These {len(records)}"
    total = f"{', '.join(counts)}. {these} took {minutes:.0f} minutes; seconds: all seeds together."
    return "\n".join([*lines, "", total, ""])


def section(claim, record, path, beside):
    """A claim and what was found; path: of its record, for a page in the folder `beside`."""
    drawn = path.with_suffix(".png")                     # there is none without matplotlib
    picture = f"![{claim.title}]({os.path.relpath(drawn, beside)})\n\n" if drawn.exists() else ""
    path = os.path.relpath(path, beside)
    experiment = os.path.relpath(Path(__file__).with_name(f"{claim.name}.py"), beside)
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in record.rows())
    seeds = f"{len(record.seeds)} seed{'s' * (len(record.seeds) > 1)}"
    return f"""\
## {claim.number}. {claim.title}

{filled(claim.statement)}

{claim.mathematics.strip()}

{picture}| | published or exact | measured, {seeds} |
|---|---|---|
{table}

{filled(f"**{record.verdict[0].upper() + record.verdict[1:]}{record.caution}:** {record.reason.rstrip('.')}.")}

`{record.command}` · {record.data} · {sum(record.seconds):.0f} s for {seeds} ·
[experiment]({experiment}) · [record]({path}) · {claim.source}

{filled(f"*Try next:* {claim.next}")}
"""


def anchor(claim):
    """The link of a section's heading, as GitHub makes it: letters, digits and hyphens of the lower-case text."""
    text = f"{claim.number}. {claim.title}".lower()
    return "".join(c for c in text if c.isalpha() or c.isdecimal() or c in " -_").replace(" ", "-")
