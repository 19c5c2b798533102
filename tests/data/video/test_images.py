"""Images of 16 bits and with transparency."""

import numpy as np
import pytest
from PIL import Image

from data.errors import VideoError
from data.video.images import read_image


def test_pictures_of_sixteen_bits_and_transparent_ones(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], ramp >> 8)
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


@pytest.mark.parametrize(("at", "value"), [(11, 0), (11, 26), (11, 84)])
def test_damaged_exif_data_is_named(tmp_path, at, value):
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "hello"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.index(b"Exif\0\0") + 6 + at] = value
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(VideoError, match="its EXIF data is damaged"):
        read_image(tmp_path / "a.jpg")
