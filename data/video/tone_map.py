"""From high dynamic range (BT.2020 primaries with PQ or HLG) to the ordinary range of BT.709.

Code values become light (ITU-R BT.2100), highlights are compressed by the EETF of ITU-R BT.2390 (section 5.4.1),
primaries are converted (BT.2087), and light becomes code values of a display with gamma 2.4 (BT.1886). Diffuse white,
203 cd/m2 (BT.2408), is the white of the result.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8, UInt16

PEAK = 1000.0  # cd/m2: HLG's nominal peak, and what most PQ material is mastered for; brighter light is white
WHITE = 203.0  # cd/m2 of diffuse white
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # linear RGB of BT.2020 to BT.709 (BT.2407, table 1)
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
GAMMA = 2.4
# PQ (SMPTE ST 2084)
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def pq_to_light(code: np.ndarray) -> np.ndarray:
    """Code values in [0, 1] to cd/m2."""
    power = np.power(code, 1 / M2)
    return 10000 * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """The inverse of `pq_to_light`."""
    power = np.power(np.clip(light, 0, None) / 10000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def hlg_to_scene_light(code: np.ndarray) -> np.ndarray:
    """Code values in [0, 1] to the light of the scene, in [0, 1]: the inverse OETF of HLG."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def compress(light: np.ndarray) -> np.ndarray:
    """Light up to `PEAK` to light up to `WHITE`, in cd/m2: unchanged up to the knee, by a Hermite spline above it."""
    top = float(light_to_pq(np.array(PEAK)))
    given = np.minimum(light_to_pq(light) / top, 1)
    highest = float(light_to_pq(np.array(WHITE))) / top
    knee = 1.5 * highest - 0.5
    t = np.clip((given - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * highest
    return pq_to_light(np.where(given < knee, given, spline) * top)


def tone_map(frame: UInt16[np.ndarray, "h w 3"], transfer: Literal["pq", "hlg"]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame in RGB of BT.2020 with 16 bits, in RGB of BT.709 with 8 bits."""
    light = _light_table(transfer)[frame]
    if transfer == "hlg":  # the light of the scene: the display's depends on the luminance of the pixel (OOTF)
        luminance = np.maximum(light @ BT2020_LUMA, 1e-6)
        light = PEAK * luminance[..., None] ** 0.2 * light
    brightest = np.maximum(light.max(-1), 1e-3)
    compressed = np.interp(brightest, *_compression_table())  # of the brightest channel, so that hues stay
    linear = (light * (compressed / brightest / WHITE)[..., None].astype(np.float32)) @ TO_BT709.T
    return (np.power(np.clip(linear, 0, 1), 1 / GAMMA) * 255).round().astype(np.uint8)


@lru_cache(maxsize=2)
def _light_table(transfer: Literal["pq", "hlg"]) -> Float[np.ndarray, " codes"]:
    codes = np.arange(2**16) / (2**16 - 1)
    return (pq_to_light(codes) if transfer == "pq" else hlg_to_scene_light(codes)).astype(np.float32)


@lru_cache(maxsize=1)
def _compression_table() -> tuple[np.ndarray, np.ndarray]:
    light = pq_to_light(np.linspace(0, 1, 4096))
    return light, compress(light)
