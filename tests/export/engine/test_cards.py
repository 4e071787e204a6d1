"""Cards' names as targets."""

from __future__ import annotations

import re

import pytest

from denseport.export.engine.build import EngineOptions
from denseport.export.engine.cards import CARDS, architectures
from denseport.export.engine.profile import named_profiles
from denseport.runtime.errors import InputError


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("rtx4090", "sm_89"),
        ("NVIDIA GeForce RTX 4090", "sm_89"),  # as nvidia-smi prints it
        ("RTX_3080-Ti", "sm_86"),
        ("NVIDIA GeForce RTX 4070 SUPER", "sm_89"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "sm_86"),
        ("Tesla T4", "sm_75"),
        ("l4", "sm_89"),
        ("A100", "sm_80"),
        ("NVIDIA A100-SXM4-80GB", "sm_80"),
        ("NVIDIA A100 80GB PCIe", "sm_80"),
        ("NVIDIA H100 80GB HBM3", "sm_90"),
        ("NVIDIA H100 NVL", "sm_90"),
        ("NVIDIA RTX 6000 Ada Generation", "sm_89"),
        ("h100", "sm_90"),
        ("orin", "sm_87"),
        ("gb10", "sm_121"),
    ],
)
def test_a_card_is_its_compute_capability(name: str, architecture: str) -> None:
    assert architectures([name]) == (architecture,)


def test_the_table_is_one_to_one() -> None:
    names = [name for cards in CARDS.values() for name in cards]
    assert len(names) == len(set(names))
    assert all(architectures([name]) == (architecture,) for architecture, cards in CARDS.items() for name in cards)
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in names)


def test_each_architecture_is_built_for_once() -> None:
    options = EngineOptions(
        "tensorrt_rtx", named_profiles("reference", "tensorrt_rtx"), targets=("rtx4090", "l4", "sm_86")
    )
    assert options.targets == ("sm_89", "sm_86")


@pytest.mark.parametrize("name", ["rtx9999", "", "86", "sm86"])
def test_an_unknown_card_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"no GPU {name!r} is known")) as caught:
        architectures([name])
    assert caught.value.remedy is not None
    assert {card for cards in CARDS.values() for card in cards} <= set(re.findall(r"\w+", caught.value.remedy))
