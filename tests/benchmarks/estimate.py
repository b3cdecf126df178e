"""Estimate a SimCLR step on 8 and 64 GPUs by arithmetic; nothing here was measured.

    python tests/benchmarks/estimate.py

Each process takes V/k of the views through the encoder and 1/k of the V^2/2 pairs through the loss. A pair costs 4 d
multiplications, and as many additions, forward and backward, and 32 bytes of memory traffic; the loss takes at least 12
launches for each of its (k + 1) / 2 tiles. The step communicates one gather of u (V d numbers) and
one scatter of its gradient's sums, one sum of the parameters' gradients (a ring sends them twice), and two short
exchanges per batch norm. Nothing overlaps.
"""

import argparse

# effective FLOP/s of encoder and loss; bytes/s; seconds per launch
ENCODER, LOSS, MEMORY, LAUNCH = 60e12, 40e12, 2.5e12, 10e-6
NETS = {                                                     # FLOP to train on a view; parameters; batch norms
    "ResNet-18, 32 px": (3.3e9, 11.2e6, 22),
    "ResNet-50, 224 px": (24.6e9, 28e6, 55),
}
LINKS = {                                                    # GPUs; bytes/s; seconds of a short exchange
    "8, NVLink": (8, 300e9, 20e-6),
    "64, 8 network cards a node": (64, 200e9, 50e-6),
    "64, 1 card of 25 GB/s a node": (64, 25e9, 60e-6),
}
BATCHES = ((4096, 128), (32768, 512))                        # images, dimensions of z


def estimate(net, link, batch, d):
    """(milliseconds of a step's parts, the share of communication)."""
    (flops, parameters, norms) = NETS[net]
    (k, bandwidth, latency) = LINKS[link]
    V = 2 * batch
    encoder = V / k * flops / ENCODER
    loss = max(4 * V * V * d / k / LOSS + V * V / 2 * 32 / k / MEMORY, (k + 1) / 2 * 12 * LAUNCH)
    rows = (k - 1) / k * V * d * 4 / bandwidth + latency     # a gather; the scatter takes as long
    gradients = 2 * (k - 1) / k * parameters * 4 / bandwidth + latency
    norm = 2 * norms * latency
    communication = 2 * rows + gradients + norm
    return [1e3 * x for x in (encoder, loss, 2 * rows, gradients, norm)], communication / (encoder + loss + communication)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| GPUs | network, batch, d | encoder | loss | rows of z | gradients | batch norm | communication |\n"
          "|---|---|--:|--:|--:|--:|--:|--:|")
    for link in LINKS:
        for net in NETS:
            for batch, d in BATCHES:
                times, share = estimate(net, link, batch, d)
                print(f"| {link} | {net}, {batch}, {d} | " + " | ".join(f"{x:.0f}" if x >= 10 else f"{x:.1f}" for x in times)
                      + f" | {share:.1%} |")


if __name__ == "__main__":
    main()
