"""What tf32 and bf16 products would save in a training step on an H100, by arithmetic; nothing here was measured.

    python tests/benchmarks/precision.py

For each convolution (H', W', kernel, stride, C, K): a gather of columns and a product forward, as much for dw, and for dx (of
all layers but the first), and the 11 reads and writes of batch norm and relu. A kernel takes the longer of its arithmetic and
its memory traffic, both at NVIDIA's published rates, so tensor cores are flattered. With bf16 the columns and products' other
operands would be written in 2 bytes; activations, their gradients and the sums stay in float32. A projection head is left out.
"""

RATES = {"float32": (67e12, 4), "tf32": (495e12, 4), "bf16": (989e12, 2)}            # FLOP/s, bytes of an operand's entry
BANDWIDTH = 3.35e12                                                                  # bytes/s of HBM3
IMAGES = 2 * 512                                                                     # two views


def convnet():
    return [(14, 14, 3, 2, 1, 32), (7, 7, 3, 2, 32, 64), (4, 4, 3, 2, 64, 128)]


def resnet18():
    layers, C = [(32, 32, 3, 1, 3, 64)], 64
    for stage in range(4):
        H, K = 32 >> stage, 64 << stage
        layers += [(H, H, 3, 1 + (stage > 0), C, K), *[(H, H, 3, 1, K, K)] * 3]
        layers += [(H, H, 1, 2, C, K)] * (stage > 0)
        C = K
    return layers


def seconds(layers, precision):
    """(products, gathers, the rest) of a step."""
    rate, size = RATES[precision]
    products = gathers = rest = 0.0
    for number, (H, W, kernel, stride, C, K) in enumerate(layers):
        M, taps = H * W * IMAGES, kernel * kernel
        flops, x, y, columns = 2 * M * taps * C * K, M * stride**2 * C, M * K, M * taps * C
        gather = (4 * x + size * columns) / BANDWIDTH if taps > 1 or stride > 1 else 0.0
        forward = max(flops / rate, (size * columns + 4 * y) / BANDWIDTH)
        dw = max(flops / rate, (size * columns + size * y) / BANDWIDTH)
        products, gathers = products + forward + dw, gathers + 2 * gather
        if number:                                                                   # dx: columns of g, or added back
            wide = M * taps * (K if stride == 1 else C)
            products += max(flops / rate, (size * wide + 4 * x) / BANDWIDTH)
            gathers += (4 * (y if stride == 1 else x) + size * wide) / BANDWIDTH
        rest += 11 * 4 * y / BANDWIDTH
    return products, gathers, rest


def main():
    print("| network, 512 images | products in | products, ms | gathers, ms | batch norm and relu, ms | step, ms |\n"
          "|---|---|--:|--:|--:|--:|")
    for name, layers in (("convnet, 28 px", convnet()), ("ResNet-18, 32 px", resnet18())):
        for precision in RATES:
            parts = [1e3 * part for part in seconds(layers, precision)]
            print(f"| {name} | {precision} | " + " | ".join(f"{part:.2f}" for part in (*parts, sum(parts))) + " |")


if __name__ == "__main__":
    main()
