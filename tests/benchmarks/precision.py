"""What tf32 and bf16 products would save in a training step on an H100, by arithmetic; nothing here was measured.

    python tests/benchmarks/precision.py

For each convolution (H', W', kernel, stride, C, K): a gather of columns and a product forward, as much for dw, and for dx (of
all layers but the first), and the 11 reads and writes of batch norm and relu. A kernel takes the longer of its arithmetic and
its memory traffic, both at NVIDIA's published rates, so tensor cores are flattered. With bf16 the operands of products are in
2 bytes: the columns, as they are gathered, and g, which is rounded by a kernel of its own; activations, their gradients and the
results of products stay in float32. Weights and a projection head are left out.
"""

RATES = {"float32": (67e12, 4), "tf32": (495e12, 4), "bf16": (989e12, 2)}            # FLOP/s, bytes of an operand's entry
BANDWIDTH = 3.35e12                                                                  # bytes/s of HBM3
IMAGES = 2 * 512                                                                     # two views


def convnet():
    return [(14, 14, 3, 2, 1, 32), (7, 7, 3, 2, 32, 64), (4, 4, 3, 2, 64, 128)]


def resnet18():
    layers = [(32, 32, 3, 1, 3, 64)]
    C = 64
    for stage in range(4):
        H, K = 32 >> stage, 64 << stage
        layers += [(H, H, 3, 1 + (stage > 0), C, K), *[(H, H, 3, 1, K, K)] * 3]
        layers += [(H, H, 1, 2, C, K)] * (stage > 0)
        C = K
    return layers


def seconds(layers, precision):
    """(products, gathers and rounding, the rest) of a step."""
    rate, size = RATES[precision]
    products = gathers = rest = 0.0
    for number, (H, W, kernel, stride, C, K) in enumerate(layers):
        M, taps = H * W * IMAGES, kernel * kernel
        flops, x, y, columns = 2 * M * taps * C * K, M * stride**2 * C, M * K, M * taps * C
        gather = (4 * x + size * columns) / BANDWIDTH if taps > 1 or stride > 1 else 0.0
        rounding = (4 + size) * y / BANDWIDTH if size < 4 else 0.0
        forward = max(flops / rate, (size * columns + 4 * y) / BANDWIDTH)
        dw = max(flops / rate, (size * columns + size * y) / BANDWIDTH)
        products, gathers = products + forward + dw, gathers + 2 * gather + rounding
        if number and stride == 1:                                                   # dx from columns of g
            products += max(flops / rate, (size * M * taps * K + 4 * x) / BANDWIDTH)
            gathers += (4 * y + size * M * taps * K) / BANDWIDTH
        elif number:                                                                 # columns of dx, added back
            products += max(flops / rate, (size * y + 4 * columns) / BANDWIDTH)
            gathers += 4 * (columns + x) / BANDWIDTH
        rest += 11 * 4 * y / BANDWIDTH
    return products, gathers, rest


def main():
    print("| network, 512 images | products in | products, ms | gathers and rounding, ms | batch norm and relu, ms | step, ms |\n"
          "|---|---|--:|--:|--:|--:|")
    for name, layers in (("convnet, 28 px", convnet()), ("ResNet-18, 32 px", resnet18())):
        for precision in RATES:
            parts = [1e3 * part for part in seconds(layers, precision)]
            print(f"| {name} | {precision} | " + " | ".join(f"{part:.2f}" for part in (*parts, sum(parts))) + " |")


if __name__ == "__main__":
    main()
