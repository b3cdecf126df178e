"""open_image reads the visible pixels of every kind of picture file, or raises one line that names the file."""

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
    ("32.tif", lambda grey: grey.astype(np.int32) * 257), ("8.png", lambda grey: grey), ("8.jpg", lambda grey: grey)])
def test_grey_values_of_8_and_16_bits_agree(photo, tmp_path, name, values):
    Image.fromarray(grey(photo)).save(tmp_path / "grey.png")
    Image.fromarray(values(grey(photo))).save(tmp_path / name, **{"quality": 95} if "jpg" in name else {})
    for channels in (1, 3):
        image, expected = (open_image(tmp_path / file, 32, channels=channels) for file in (name, "grey.png"))
        assert image.shape == (32, 32, channels)
        assert np.abs(image.astype(int) - expected).max() <= (8 if "jpg" in name else 0)


def write_png_of_16_bits(path, pixels, *more):
    """Write a 16-bit PNG file of pixels (H, W, C) and chunks (name, content). Pillow writes none in colour."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_files_of_16_bits_are_read_in_colour_and_with_alpha(tmp_path, channels):
    pixels = np.full((8, 8, channels), 0x4080)
    if channels in (2, 4):
        pixels[..., -1] = 0xFFFF
    write_png_of_16_bits(tmp_path / "x.png", pixels)
    assert set(np.unique(open_image(tmp_path / "x.png", 8))) == {0x40}


def write_tiff(path, pixels, *, order="<", photometric, planes=1, sample_format=1, bits=16):
    """Write a TIFF file of one strip a plane, of 16-bit pixels (H, W, C)."""
    height, width, channels = pixels.shape
    strips = [pixels] if planes == 1 else [pixels[..., c] for c in range(channels)]
    strips = [strip.astype(f"{order}u2").tobytes() for strip in strips]
    entries = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [photometric]), (273, None),
               (277, [channels]), (278, [height]), (279, list(map(len, strips))), (284, [planes]),
               (339, [sample_format] * channels)]
    end = 8 + 2 + 12 * len(entries) + 4                      # of the directory; longer values follow, then the strips
    start = end + 4 * sum(n for _, values in entries if (n := len(values or strips)) > 1)
    directory, longer = struct.pack(f"{order}H", len(entries)), b""
    for name, values in entries:
        values = values or [start + sum(map(len, strips[:k])) for k in range(len(strips))]
        content = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            longer += content
            content = struct.pack(f"{order}L", end + len(longer) - len(content))
        directory += struct.pack(f"{order}HHL", name, 4, len(values)) + content
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    path.write_bytes(head + directory + bytes(4) + longer + b"".join(strips))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels, options, message", [
    (1, {"photometric": 1}, None), (3, {"photometric": 2}, None),
    (1, {"photometric": 0}, "with white as 0"), (3, {"photometric": 2, "planes": 2}, "with each colour in a plane of its own"),
    (1, {"photometric": 1, "sample_format": 2}, "signed"), (1, {"photometric": 1, "bits": 12}, "not of 16 bits"),
])
def test_tiff_files_of_16_bits_are_read_or_refused(tmp_path, order, channels, options, message):
    path = tmp_path / "x.tif"
    values = np.array([0x20, 0x60, 0xA0])[:channels]
    write_tiff(path, np.tile(values * 257, (8, 8, 1)), order=order, **options)
    if message is None:
        assert (open_image(path, 8) == values).all()
    else:
        with pytest.raises(DataError, match=f"x.tif: .*({message}.*save it as PNG|not a picture)"):
            open_image(path, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [0, 0x1234, 0xFFFF])
def test_a_transparent_colour_of_16_bits_becomes_white(tmp_path, channels, transparent):
    pixels = np.full((8, 8, channels), transparent)
    pixels[:, 4:] = 0x8080
    write_png_of_16_bits(tmp_path / "x.png", pixels, (b"tRNS", struct.pack(">H", transparent) * channels))
    image = open_image(tmp_path / "x.png", 8)
    assert (image[:, :4] == 255).all() and (image[:, 4:] == 128).all()


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
    ("negative.tif", lambda path, photo: Image.fromarray(np.full((4, 4), -1, np.int32)).save(path), "not 8 or 16 bits"),
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
