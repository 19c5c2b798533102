"""Settings that several stages share."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""The floating-point type that networks compute in; auto is bf16 where the hardware supports it, otherwise fp32."""
