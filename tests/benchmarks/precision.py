"""Estimate what tf32 and bf16 products save in a training step on an H100, by arithmetic; nothing here was measured.

    python tests/benchmarks/precision.py

Each convolution (H', W', kernel, stride, C, K) takes a gather of columns and a product forward, the same for dw, the
same for dx (except in the first layer), and the 11 reads and writes of batch norm and relu. A kernel takes the longer
of its arithmetic and its memory traffic, both at NVIDIA's published rates, which flatters tensor cores. With bf16 the
operands of products take 2 bytes: the columns, rounded as they are gathered, and g, rounded by a separate kernel.
Activations, their gradients and the results of products stay in float32. Weights and the projection head are left out.
"""

import argparse

RATES = {"float32": (67e12, 4), "tf32": (495e12, 4), "bf16": (989e12, 2)}  # FLOP/s, bytes per entry of an operand
BANDWIDTH = 3.35e12                                                                  # bytes/s of HBM3
IMAGES = 2 * 512                                                                     # two views


def convnet(side=28):
    sides = [-(-side // s) for s in (2, 4, 8)]
    return [(H, H, 3, 2, C, K) for H, C, K in zip(sides, (1, 32, 64), (32, 64, 128))]


def resnet18(side=32, width=64):
    layers = [(side, side, 3, 1, 3, width)]
    C = width
    for stage in range(4):
        H, K = side >> stage, width << stage
        layers += [(H, H, 3, 1 + (stage > 0), C, K), *[(H, H, 3, 1, K, K)] * 3]
        layers += [(H, H, 1, 2, C, K)] * (stage > 0)
        C = K
    return layers


def seconds(layers, precision, images=IMAGES, rate=None, bandwidth=BANDWIDTH):
    """Seconds of (products, gathers and rounding, the rest) in a step, by default at the published rates."""
    rate, size = rate or RATES[precision][0], RATES[precision][1]
    products = gathers = rest = 0.0
    for number, (H, W, kernel, stride, C, K) in enumerate(layers):
        M, taps = H * W * images, kernel * kernel
        flops, x, y, columns = 2 * M * taps * C * K, M * stride**2 * C, M * K, M * taps * C
        gather = (4 * x + size * columns) / bandwidth if taps > 1 or stride > 1 else 0.0
        rounding = (4 + size) * y / bandwidth if size < 4 else 0.0
        forward = max(flops / rate, (size * columns + 4 * y) / bandwidth)
        dw = max(flops / rate, (size * columns + size * y) / bandwidth)
        products, gathers = products + forward + dw, gathers + 2 * gather + rounding
        if number and stride == 1:                                                   # computes dx from columns of g
            products += max(flops / rate, (size * M * taps * K + 4 * x) / bandwidth)
            gathers += (4 * y + size * M * taps * K) / bandwidth
        elif number:  # computes columns of dx and adds them up
            products += max(flops / rate, (size * y + 4 * columns) / bandwidth)
            gathers += 4 * (columns + x) / bandwidth
        rest += 11 * 4 * y / bandwidth
    return products, gathers, rest


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| network, 512 images | products in | products, ms | gathers and rounding, ms | batch norm and relu, ms | step, ms |\n"
          "|---|---|--:|--:|--:|--:|")
    for name, layers in (("convnet, 28 px", convnet()), ("ResNet-18, 32 px", resnet18())):
        for precision in RATES:
            parts = [1e3 * part for part in seconds(layers, precision)]
            print(f"| {name} | {precision} | " + " | ".join(f"{part:.2f}" for part in (*parts, sum(parts))) + " |")


if __name__ == "__main__":
    main()
