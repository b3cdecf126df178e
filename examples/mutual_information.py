"""Mutual information: how much of it InfoNCE measures, and where it saturates.

    python examples/mutual_information.py                # CPU, about a minute
    python examples/mutual_information.py --backend cupy
    mpirun -n 4 python examples/mutual_information.py    # four processes share every batch

x and y are correlated Gaussians in 20 dimensions, whose information I(x; y) is known and is raised in steps: 2, 4, 6,
8, 10 nats (Poole et al. 2019, figure 2). A critic learns to pick each x's y among the 64 of its batch. Its bound, log 64 -
loss, is drawn beside the truth, the cap log 64, and the best critic's bound.
"""

import math

import numpy as np

from known_information import (draw_gaussians, gaussian_correlation, log_density_ratio, optimal_bound, pairs_bound,
                               symbol_estimates)
from minicl import capture, get_backend, ops, viz
from minicl.backend import peak_memory_mib, threads, to_device
from minicl.contrastive import info_nce_from_scores
from minicl.distributed import all_gather, get_world
from minicl.evaluate import infonce_bound
from minicl.nn import Linear, Module, Sequential
from minicl.nn.layers import RELU_GAIN
from minicl.optim import Adam
from minicl.options import at_least, options
from minicl.run import Run, command
from plots import line_plots

NATS = (2, 4, 6, 8, 10)            # the true information, each for a fifth of the steps
CANDIDATES = (16, 64, 256)         # for which the optimal critic's bound is computed
STEPS_PER_EPOCH = 100              # every step draws new pairs; there is no data set


def main():
    parser = options(__doc__, epochs=200, batch=64, lr=5e-4, tau=1.0, data=None)
    parser.describe("--epochs", f"epochs of {STEPS_PER_EPOCH} steps, each of pairs that are drawn anew")
    parser.set_defaults(log_every=10)
    parser.add_argument("--dim", type=at_least(3, 2**14), default=20,
                        help="dimensions of x and of y; fewer than 3 cannot hold 10 nats in float32")
    parser.add_argument("--pairs", type=at_least(2 * max(CANDIDATES)), default=200_000,
                        help="number of pairs drawn for each value of the optimal critic")
    args = parser.parse_args()

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "mutual_information", world, grows=False)                        # the stairs depend on --epochs
    rng = np.random.default_rng(args.seed)
    positive_ids = xp.arange(args.batch)[world.part]                                 # x_i belongs to y_i

    critic = Critic(args.dim, rng).to(xp).across(world)
    optimizer = Adam(critic, args.lr)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(x, y):
        """One training step on this process's x, y (N, d)."""
        loss = info_nce_from_scores(critic(x, y), positive_ids, args.tau, world=world)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    # Training: the critic follows as the information rises.
    total = args.epochs * STEPS_PER_EPOCH
    stair = total // len(NATS)
    with threads(args.threads or 1, keep_memory=args.keep_memory):             # these products are too small to share
        for step in run.steps(total, rng, save_every=stair, critic=critic, optimizer=optimizer):
            nats = NATS[step // stair]
            rho = gaussian_correlation(nats, args.dim)
            x, y = (to_device(side, xp) for side in draw_gaussians(rng, args.batch, args.dim, rho))     # (N, d) both
            loss = train(x[world.part], y[world.part])

            if run.logs(step) or (step + 1) % stair == 0:
                run.log(step, nats=nats, loss=loss.item(), bound=infonce_bound(loss.item(), args.batch).nats,
                        optimal=pairs_bound(log_density_ratio(x, y, rho)))
        run.print("the optimal critic, for each number of candidates")
        rng = np.random.default_rng(args.seed)
        optimal = {K: [optimal_bound(nats, args.dim, K, pairs=args.pairs, rng=rng)[0] for nats in NATS]
                   for K in CANDIDATES}

    # The critic's bound: the mean over the logged steps of the second half of each stair, on pairs never seen before.
    log = run.read_log()
    late = [line for line in log if line["step"] % stair >= stair // 2]
    learned = [float(np.mean([line["bound"] for line in late if line["nats"] == nats])) for nats in NATS]
    if world.rank == 0:
        draw(run, log, optimal, args.batch)
    symbol = symbol_estimates(2, 8)
    run.finish({"data": f"Gaussians in {args.dim} dimensions", "backend": args.backend, "seed": args.seed,
                "cap_nats": math.log(args.batch),
                **{f"learned_{nats}": value for nats, value in zip(NATS, learned)},
                **{f"optimal_{K}_{nats}": value for K in CANDIDATES for nats, value in zip(NATS, optimal[K])},
                "symbol_information": symbol.information, "symbol_infonce": symbol.infonce,
                "symbol_nt_xent": symbol.nt_xent, "seconds": run.elapsed(), "peak_mib": peak_memory_mib(xp)},
               ["learned_I: the trained critic's bound where the true information is I nats",
                "optimal_K_I: the best critic's, with K candidates",
                "symbol_...: N = 8 images, each one of 2 symbols, which both views show; NT-Xent's log(2N-1) - loss is "
                "above the information, so it is no bound"])


class Critic(Module):
    """x, y (N, d) -> the scores (N, N) of all pairs: dot products of two networks' outputs for x and y.

    With several processes each has a part of the pairs, and scores its x with the y of all."""

    def __init__(self, d, rng):
        self.x_network = network(d, rng)
        self.y_network = network(d, rng)

    def forward(self, x, y):
        return self.x_network(x) @ all_gather(self.y_network(y), world=self.world).T


def network(inputs, rng):
    """Two layers of 256 units with relu, then a linear one: (N, inputs) -> (N, 32)."""
    return Sequential(Linear(inputs, 256, rng=rng, gain=RELU_GAIN), ops.relu,
                      Linear(256, 256, rng=rng, gain=RELU_GAIN), ops.relu, Linear(256, 32, rng=rng))


def draw(run, log, optimal, batch):
    """The staircase, and the optimal critic's bound against the truth for several numbers of candidates."""
    steps = [line["step"] for line in log]
    cap = math.log(batch)
    smooth = [float(np.mean([near["bound"] for near in log[max(0, k - 15):k + 16] if near["nats"] == line["nats"]]))
              for k, line in enumerate(log)]
    colours = dict(zip(CANDIDATES, (viz.RED, viz.BLUE, "#4e9a06")))
    line_plots(
        run.folder / "information.png",
        {"lines": [("true information", steps, [line["nats"] for line in log], {"color": "black"}),
                   (f"cap, log {batch}", steps, [cap] * len(steps), {"color": viz.GREY, "linestyle": "--"}),
                   ("optimal critic, same batches", steps, [line["optimal"] for line in log],
                    {"color": viz.RED, "linewidth": 0.4, "alpha": 0.5}),
                   ("learned critic", steps, smooth, {"color": viz.BLUE})],
         "title": f"InfoNCE with {batch} candidates", "xlabel": "step", "ylabel": "nats", "ylim": (0, 11),
         "xticks": range(0, steps[-1] + 2, (steps[-1] + 1) // len(NATS))},
        {"lines": [("true information", NATS, NATS, {"color": "black"})]
                  + [line for K, color in colours.items() for line in (
                      (f"optimal critic, {K} candidates", NATS, optimal[K], {"color": color, "marker": "o"}),
                      (None, NATS, [math.log(K)] * len(NATS), {"color": color, "linestyle": "--", "linewidth": 1}))],
         "title": "the best bound, and its cap log K (dashed)", "xlabel": "true information (nats)",
         "ylabel": "bound (nats)", "ylim": (0, 11)})


if __name__ == "__main__":
    command(main)
