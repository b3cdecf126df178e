"""open_image reads the visible pixels of every kind of picture file, or raises one line that names the file."""

import itertools
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from minicl.data import DataError, open_image

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def photo():
    """A smooth picture, 480 x 320, whose left half is red."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    noise[:, :6] = noise[:, :6] // 4 + [180, 0, 0]
    return Image.fromarray(noise).resize((480, 320), Image.Resampling.BICUBIC)


def grey(photo):
    return np.asarray(photo.convert("L"))


def rotated(photo, path):
    exif = Image.Exif()
    exif[0x0112] = 6                                         # viewers rotate it by 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)


# (file, save(photo, path), largest mean error against the PNG file)
FILES = [
    ("rgb.png", lambda photo, path: photo.save(path), 0),
    ("rgb.jpg", lambda photo, path: photo.save(path, quality=95), 1),
    ("RGB.JPEG", lambda photo, path: photo.save(path, quality=95, progressive=True), 1),
    ("rgb.bmp", lambda photo, path: photo.save(path), 0),
    ("rgb.webp", lambda photo, path: photo.save(path, lossless=True), 0),
    ("rgb.tif", lambda photo, path: photo.save(path), 0),
    ("rgb.ppm", lambda photo, path: photo.save(path), 0),
    ("palette.gif", lambda photo, path: photo.quantize(256).save(path), 6),
    ("palette.png", lambda photo, path: photo.quantize(256).save(path), 6),
    ("opaque.png", lambda photo, path: photo.convert("RGBA").save(path), 0),
    ("cmyk.jpg", lambda photo, path: photo.convert("CMYK").save(path, quality=95), 1),
    ("cmyk.tif", lambda photo, path: photo.convert("CMYK").save(path), 1),
    ("rotated.jpg", rotated, 1),
    ("moving.gif", lambda photo, path: photo.quantize(256).save(
        path, save_all=True, append_images=[Image.new("P", photo.size)] * 2), 6),
    ("ein schönes Bild.png", lambda photo, path: photo.save(path), 0),
    ("picture", lambda photo, path: photo.save(path, format="PNG"), 0),
]


@pytest.mark.parametrize("name, save, error", FILES, ids=[name for name, *_ in FILES])
def test_every_kind_of_file_gives_the_same_picture(photo, tmp_path, name, save, error):
    photo.save(tmp_path / "reference.png")
    save(photo, tmp_path / name)
    image, expected = (open_image(tmp_path / file, 64) for file in (name, "reference.png"))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert np.abs(image.astype(int) - expected).mean() <= error


@pytest.mark.parametrize("name, values", [
    ("16.png", lambda grey: grey.astype(np.uint16) * 257), ("16.tif", lambda grey: grey.astype(np.uint16) * 257),
    ("8.png", lambda grey: grey), ("8.jpg", lambda grey: grey)])
def test_grey_values_of_8_and_16_bits_agree(photo, tmp_path, name, values):
    Image.fromarray(grey(photo)).save(tmp_path / "grey.png")
    Image.fromarray(values(grey(photo))).save(tmp_path / name, **{"quality": 95} if "jpg" in name else {})
    for channels in (1, 3):
        image, expected = (open_image(tmp_path / file, 32, channels=channels) for file in (name, "grey.png"))
        assert image.shape == (32, 32, channels)
        assert np.abs(image.astype(int) - expected).max() <= (8 if "jpg" in name else 0)


def write_png(path, pixels, bits, *more):
    """Write a PNG file of pixels (H, W, C) and chunks (name, content). Pillow writes none of 16 bits in colour."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    values = pixels.astype(">u2").view("u1").reshape(height, width * channels, 2)
    rows = np.packbits(np.unpackbits(values, axis=2)[..., 16 - bits:].reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_files_of_16_bits_are_read_in_colour_and_with_alpha(tmp_path, channels):
    pixels = np.full((8, 8, channels), 0x4080)
    if channels in (2, 4):
        pixels[..., -1] = 0xFFFF
    write_png(tmp_path / "x.png", pixels, 16)
    assert set(np.unique(open_image(tmp_path / "x.png", 8))) == {0x40}


def write_tiff(path, values, bits, photometric, *, order="<", planes=1, kind=1, fill=1, extra=(), is_packed=False,
               palette=()):
    """Write a TIFF file of one strip, or of one a plane, of the integers (H, W, samples)."""
    def strip(rows):
        if bits % 8:
            content = np.packbits((rows[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(rows), -1).astype(bool), axis=1)
        else:
            content = rows.astype(f"{order}u{bits // 8}")
        content = zlib.compress(content.tobytes()) if is_packed else content.tobytes()
        reverse = np.packbits(np.unpackbits(np.frombuffer(content, np.uint8).reshape(-1, 1), axis=1)[:, ::-1]).tobytes()
        return content if fill == 1 else reverse

    height, width, samples = values.shape
    strips = [*map(strip, np.moveaxis(values, 2, 0))] if planes == 2 else [strip(values.reshape(height, -1))]
    entries = [(256, [width]), (257, [height]), (258, [bits] * samples), (259, [8 if is_packed else 1]),
               (262, [photometric]), (266, [fill]), (273, None), (277, [samples]), (278, [height]),
               (279, [*map(len, strips)]), (284, [planes]), (320, [*palette]), (338, [*extra]), (339, [kind] * samples),
               (530, [1, 1])]
    entries = [(name, found) for name, found in entries if found != []]
    end = 8 + 2 + 12 * len(entries) + 4                      # of the directory; longer values follow, then the strips
    start = end + 4 * sum(n for _, found in entries if (n := len(strips if found is None else found)) > 1)
    directory, longer = struct.pack(f"{order}H", len(entries)), b""
    for name, found in entries:
        found = [start + sum(map(len, strips[:k])) for k in range(len(strips))] if found is None else found
        content = struct.pack(f"{order}{len(found)}L", *found)
        if len(found) > 1:
            longer += content
            content = struct.pack(f"{order}L", end + len(longer) - len(content))
        directory += struct.pack(f"{order}HHL", name, 4, len(found)) + content
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    path.write_bytes(head + directory + bytes(4) + longer + b"".join(strips))


def colours(values, top, photometric, extra, palette):
    """The colours (H, W, 3) from 0 to 255 that the TIFF standard gives samples from 0 to `top`, over white."""
    part = values / top
    n = {2: 3, 5: 4, 6: 3}.get(photometric, 1)
    first, alpha = part[..., :n], part[..., n:n + 1]
    if photometric == 0:
        first = 1 - first
    elif photometric == 3:
        first = palette[values[..., 0]] / 65535
    elif photometric == 5:
        first = (1 - first[..., :3]) * (1 - first[..., 3:])
    elif photometric == 6:
        y, blue, red = first[..., 0], first[..., 1] - 128 / 255, first[..., 2] - 128 / 255
        first = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    if extra == (1,):
        first = first + (1 - alpha)                          # these colours are multiplied by alpha
    elif extra == (2,):
        first = first * alpha + (1 - alpha)
    return np.round(255 * first).clip(0, 255)


@pytest.mark.parametrize("photometric, samples", [(0, 1), (1, 1), (2, 3), (3, 1), (5, 4), (6, 3)])
def test_a_tiff_file_of_any_layout_is_right_or_refused(rng, tmp_path, photometric, samples):
    path = tmp_path / "x.tif"
    right = set()
    for bits, fill, extra, planes, kind, order, is_packed in itertools.product(
            (1, 2, 4, 8, 12, 16, 32), (1, 2), ((), (0,), (1,), (2,)), (1, 2), (1, 2), "<>", (False, True)):
        values = rng.integers(0, 2**bits // kind, (8, 8, samples + len(extra)))
        palette = rng.integers(0, 256, (2**bits, 3)) * 257 if photometric == 3 and bits <= 8 else np.empty((0, 3), int)
        if photometric == 6:
            values[..., 1:3] = 2**bits * 3 // 7 + values[..., 1:3] // 6
        if extra == (1,):
            values[..., :-1] = values[..., :-1] * values[..., -1:] // (2**bits - 1)
        write_tiff(path, values, bits, photometric, order=order, planes=planes, kind=kind, fill=fill, extra=extra,
                   is_packed=is_packed, palette=palette.T.reshape(-1).tolist())
        try:
            image = open_image(path, 8)
        except DataError as error:
            assert re.search("save it as PNG of 8 or 16 bits|not a picture|damaged or unusual", str(error))
        else:
            expected = colours(values, 2**bits // kind - 1, photometric, extra, palette)
            assert np.abs(image - expected).max() <= 3, (bits, fill, extra, planes, kind, order, is_packed)
            right.add((bits, extra, planes))
    assert right >= {0: {(1, (), 1), (8, (), 1)}, 1: {(1, (), 1), (8, (), 2), (16, (), 1), (8, (2,), 1)},
                     2: {(8, (), 1), (8, (), 2), (16, (), 1), (8, (2,), 1), (8, (2,), 2), (16, (2,), 1)},
                     3: {(4, (), 1), (8, (), 1)}, 5: {(8, (), 1), (8, (), 2), (16, (), 1)}, 6: {(8, (), 1)}}[photometric]


@pytest.mark.parametrize("bits, photometric, options, message", [
    (16, 0, {}, "its 16-bit values .* with white as 0"), (16, 2, {"planes": 2}, "with each colour in a plane of its own"),
    (8, 8, {"planes": 2}, "its 8-bit values .* in a plane of its own"), (8, 1, {"kind": 2}, "signed"),
    (16, 1, {"kind": 2}, "signed"), (12, 1, {}, "not of 8 or 16 bits"), (32, 1, {}, "not of 8 or 16 bits")])
def test_a_refused_tiff_file_names_what_to_change(tmp_path, bits, photometric, options, message):
    write_tiff(tmp_path / "x.tif", np.full((8, 8, 1 if photometric < 2 else 3), 100), bits, photometric, **options)
    with pytest.raises(DataError, match=f"x.tif: .*{message}.*; save it as PNG of 8 or 16 bits"):
        open_image(tmp_path / "x.tif", 8)


@pytest.mark.parametrize("transparent", [0, 5, 0x1234, 0xFFFF])
def test_a_transparent_grey_of_16_bits_becomes_white_and_a_colour_is_refused(tmp_path, transparent):
    """Pillow's colours have 8 bits, so it cannot distinguish the transparent colour from those near it."""
    for channels in (1, 3):
        pixels = np.full((8, 8, channels), transparent)
        pixels[:, 4:] = 0x8080
        write_png(tmp_path / f"{channels}.png", pixels, 16, (b"tRNS", struct.pack(">H", transparent) * channels))
    image = open_image(tmp_path / "1.png", 8)
    assert (image[:, :4] == 255).all() and (image[:, 4:] == 128).all()
    with pytest.raises(DataError, match="3.png: .*one of its colours of 16 bits is transparent, .*; save it with 8 bits"):
        open_image(tmp_path / "3.png", 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_transparent_grey_or_colour_of_a_png_file_becomes_white(tmp_path, bits, channels):
    if channels == 3 and bits < 8:
        pytest.skip("PNG has no such colours")
    greys = np.arange(0, 2**bits, max(1, 2**bits // 16))
    pixels = np.repeat(np.tile(greys, (len(greys), 1))[..., None], channels, axis=2)
    for transparent in greys:
        write_png(tmp_path / "x.png", pixels, bits, (b"tRNS", struct.pack(">H", transparent) * channels))
        expected = np.where(pixels == transparent, 255, pixels * 255 // (2**bits - 1))
        np.testing.assert_array_equal(open_image(tmp_path / "x.png", len(greys), channels=channels), expected)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "tRNS"])
def test_transparent_pixels_become_white(tmp_path, kind):
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, 20:] = [200, 200, 200, 255]
    if kind in ("P", "tRNS"):
        Image.fromarray(pixels[..., 0]).convert("P" if kind == "P" else "L").save(tmp_path / "x.png", transparency=0)
    else:
        Image.fromarray(pixels).convert(kind).save(tmp_path / "x.png")
    image = open_image(tmp_path / "x.png", 40)
    assert (image[:, :20] == 255).all() and (image[:, 20:] == 200).all()


@pytest.mark.parametrize("width, height", [(480, 320), (333, 500), (64, 64), (40, 20), (3000, 2)])
def test_the_resize_is_that_of_torchvision_up_to_shifts_below_a_pixel(photo, tmp_path, width, height):
    """Resize(size) scales the shorter side to `size`, and CenterCrop(size) cuts out the centre."""
    size = 64
    picture = photo.resize((width, height))
    picture.save(tmp_path / "x.png")
    shorter = min(width, height)
    resized = picture.resize((size * width // shorter, size * height // shorter), Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in resized.size)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    assert np.abs(open_image(tmp_path / "x.png", size).astype(int) - expected).mean() < 1


def test_resizing_averages_instead_of_skipping_pixels(tmp_path):
    for name in ("x.png", "x.jpg"):
        Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (256, 256))).save(tmp_path / name)
        assert np.abs(open_image(tmp_path / name, 16).astype(int) - 127).max() <= 3


def truncated(path, photo):
    photo.save(path)
    path.write_bytes(path.read_bytes()[:-2000])


BAD = [
    ("missing.png", lambda path, photo: None, "No such file or directory"),
    ("folder.png", lambda path, photo: path.mkdir(), "is a folder; give the files in it"),
    ("empty.jpg", lambda path, photo: path.touch(), "not a picture"),
    ("text.png", lambda path, photo: path.write_text("hello"), "not a picture"),
    ("figure.eps", lambda path, photo: photo.save(path), "not a picture, or not JPEG, PNG, GIF"),
    ("cut off.png", truncated, "damaged"),
    ("cut off.jpg", truncated, "damaged"),
    ("float.tif", lambda path, photo: Image.fromarray(np.zeros((4, 4), np.float32)).save(path), "floating-point"),
    ("negative.tif", lambda path, photo: Image.fromarray(np.full((4, 4), -1, np.int32)).save(path), "not of 8 or 16 bits"),
    ("bomb.png", lambda path, photo: Image.new("1", (15000, 15000)).save(path), "too large"),
    ("large.png", lambda path, photo: Image.new("1", (10000, 10000)).save(path), "too large"),
]


@pytest.mark.parametrize("name, make, message", BAD, ids=[name for name, *_ in BAD])
def test_a_file_that_is_not_a_picture_is_one_line_that_names_it(photo, tmp_path, name, make, message):
    make(tmp_path / name, photo)
    with pytest.raises(DataError, match=message) as error:
        open_image(tmp_path / name, 32)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("arguments, message", [
    ({"size": 0}, "size"), ({"size": 10**6}, "size"), ({"size": 32.0}, "size"), ({"size": 32, "channels": 4}, "channels")])
def test_invalid_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"open_image: .*{message}"):
        open_image(tmp_path, **arguments)


def test_without_pillow_the_extra_is_named():
    code = "import sys; sys.modules['PIL'] = None; from minicl.data import open_image; open_image('x.png', 32)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DataError: pictures need Pillow: pip install 'minicl[images]'" in found.stderr
