"""Two worked exercises of the theory, with the numbers of the claims' records."""

import math

import numpy as np

from minicl.evaluate import infonce_bound
from .counting import BATCHES, IMAGES
from .head_discards import lost, tasks_of
from .infonce_bound import exact_bound
from .laboratory import filled, mean_std


def count(N):
    """NT-Xent's negatives in a batch of N images, and the most information they can show, in nats and in bits."""
    cap = infonce_bound(0.0, 2 * N - 1)
    return 2 * (N - 1), cap.cap, cap.cap_bits


def flowed(text):
    """Markdown with its paragraphs filled; headings, tables and code are not changed."""
    return "\n\n".join(part if part.startswith(("#", "|", "```")) else filled(part)
                       for part in text.strip().split("\n\n")) + "\n"


def how_many_negatives(records):
    """The answer of claim 3's record to: how many negatives and bits for a batch of N?"""
    if "counting" not in records:
        return ""
    reached = records["counting"].arrays["reached"].mean(axis=0) / math.log(2)
    best = dict(zip(BATCHES, records["counting"].arrays["best"][0] / math.log(2)))
    cosines = lowest_loss(records["shortcuts"].arrays) if "shortcuts" in records else ""
    rows = "\n".join(f"| {N} | {count(N)[0]} | {count(N)[1]:.2f} | {count(N)[2]:.2f} | {best[N]:.2f} | {bits:.2f} |"
                     for N, bits in zip(BATCHES, reached))
    return flowed(f"""\
## Exercise: how many negatives, and how many bits, for a batch of N images?

A batch of N images is 2N views. An anchor is compared with the 2N - 1 others: its positive, and 2(N-1) negatives. If
the encoder ignored the images it would choose evenly among them and lose log(2N-1); no encoder loses less than 0.
So a batch can show at most log(2N-1) nats, which are log2(2N-1) bits: N = 256 gives {count(256)[0]} negatives
and {count(256)[1]:.2f} nats = {count(256)[2]:.2f} bits, N = 4096 gives {count(4096)[0]} and {count(4096)[1]:.2f} nats
= {count(4096)[2]:.2f} bits. One bit more costs twice the batch and four times the scores. Conversely, B bits
need more than 2^B / 2 images.

```bash
python examples/claims count 256 4096       # computes it
python examples/claims run 3                # runs into the cap
```

The run: {IMAGES} images, both views the same, so there are log2 {IMAGES} = {math.log2(IMAGES):.0f} bits to be seen,
exactly. An encoder that tells all of them apart is evaluated in batches of N.

| N | negatives | cap, nats | cap, bits | best possible, bits | reached, bits |
|---|---|---|---|---|---|
{rows}

Small batches reach their cap and show nothing of what lies above; large ones show the {math.log2(IMAGES):.0f} bits that
are there. {"Three" if cosines else "Two"} cautions. The cap is what a batch *can* show, not what it shows: of
4 nats between Gaussians, 64 candidates with a cap of {math.log(64):.2f} show {exact_bound(4, 20, 64):.2f} at best,
and 256 show {exact_bound(4, 20, 256):.2f} (claim 1); count on several times e^I candidates for I nats. NT-Xent's
estimate is a distance from chance, not strictly a bound (claim 2). {cosines}
""")


def lowest_loss(metrics):
    """From claim 11's record: the lowest loss that a temperature allows."""
    loss = metrics["loss"].mean(axis=0)[-1]              # (bits,), at the highest temperature
    tau = metrics["tau"][0, -1]
    return (f"And cosines end at 1 and -1, so that at a temperature the loss cannot reach 0: at tau {tau:g} that of "
            f"claim 11 stays at {loss.min():.2f} nats, whatever number of random bits tells the images apart.")


def why_the_head_helps(records):
    """The answer of claims 8 and 9 to: why does the head help, although it is thrown away?"""
    if not {"head", "head_discards"} <= records.keys():
        return ""
    digit, shown = records["head"].arrays, records["head_discards"].arrays
    rows = "\n".join(
        f"| {task} | {mean_std(shown[f'{task}: h'], '.1f', ' %')} "
        f"| {mean_std(shown[f'{task}: g(h)'], '.1f', ' %')} | {lost(shown, task).mean():.0%} "
        f"| {lost(shown, task, ', untrained').mean():.0%} |" for task in tasks_of(shown))

    before, after = (shown.get(f"colour or grey: h{when}", np.array([1.0])) for when in (", untrained", ""))
    exception = "" if (before - after).mean() < (before - 0.5).mean() / 2 else f"""

Colour is the exception: h itself fell from {mean_std(before, '.1f', ' %')} before training to
{mean_std(after, '.1f', ' %')} in training (chance 50 %), so most of the forgetting happened before the head."""

    def gain(head):
        return mean_std(100 * (digit["mlp head, h"] - digit[head]), "+.1f")

    linear = "linear head, h" in digit                                       # which the fast form leaves out
    there = "more than 10, and 3" if linear else "more than 10"
    others = f" and {gain('linear head, h')} over a linear one, which can only project" if linear else ""
    return flowed(f"""\
## Exercise: why does the head help, although it is thrown away?

The loss asks for the same z for all views of an image, so z must not depend on what the augmentation varies. Without
a head h is z, and must itself forget all that. With a head, g can do the forgetting, and h may contain more than z.
Then the head is removed, and the forgetting with it. If this is so, three things can be measured.

```bash
python examples/claims run 8 9
```

*z forgets, h less* (claim 9). Which transformation was applied to a view, read from either by a small network:

| applied | read from h | read from z = g(h) | lost, of h's accuracy above chance | the same before training |
|---|---|---|---|---|
{rows}{exception}

*So h should be worth more than z*, though the loss never saw h (claim 8). A linear probe tells the digit from h in
{mean_std(digit['mlp head, h'], '.1f', ' %')} of all cases, from z in
{mean_std(digit['mlp head, z'], '.1f', ' %')}: {gain('mlp head, z')} points.

*And more than the h of an encoder that had no head to forget for it* (claim 8). The
gain is {gain('none head, h')} points over no head{others} (on ImageNet: {there}).

Verdicts: claim 8 *{records['head'].verdict}*, claim 9 *{records['head_discards'].verdict}*.

That g(h) contains less than h is expected: no function of h can contain more about a view than h does. The head
explains why h, under the same loss, still contains it.
""")


ANSWERS = {"counting": how_many_negatives, "head_discards": why_the_head_helps}      # by the claim on whose page they stand
