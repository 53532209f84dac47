"""Tokens that the environment asks for in front of a prompt's words: how good it is to be, how long it goes on."""

from __future__ import annotations

import os

import torch

_SWITCHES = {
    "PAD_STATIC": "STATIC_FIRST_FRAMES_TOKEN",
    "PAD_DYNAMIC": "DYNAMIC_FIRST_FRAMES_TOKEN",
    "PAD_BORDERNESS": "BORDERNESS_TOKEN",
    "PAD_HQ": "HQ_TOKEN",
    "PAD_THREE_D_MODEL": "THREE_D_MODEL_TOKEN",
    "PAD_TWO_D_ANIME": "TWO_D_ANIME_TOKEN",
    "PAD_DURATION": "DURATION_TOKEN",
}
_LONGEST = 8
_CHANNELS = 8

SPECIAL_TOKEN_DICT = {
    name: 4 * torch.randn(1, _CHANNELS, generator=torch.Generator().manual_seed(number))
    for number, name in enumerate(
        [*_SWITCHES.values(), "CAPTION_TOKEN", *(f"DURATION_TOKEN_{i + 1}" for i in range(_LONGEST))]
    )
}


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("1", "true", "yes", "y", "on", "enabled")


def get_special_token_keys() -> list[str]:
    """Tokens before the prompt, in the order in which they are put there."""
    return [token for variable, token in _SWITCHES.items() if _asked(variable)]


def get_negative_special_token_keys() -> list[str] | None:
    """Tokens before the empty prompt."""
    return ["CAPTION_TOKEN"] if _asked("NEG_PROMPT") else None


def with_tokens(keys: list[str], text: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [1, chunks, L, channels] and mask [1, chunks, L] with tokens in front; what is too long is cut."""
    chunks, length = text.shape[1:3]
    for key in keys:
        names = [f"{key}_{min(chunks - i, _LONGEST)}" if key == "DURATION_TOKEN" else key for i in range(chunks)]
        tokens = torch.stack([SPECIAL_TOKEN_DICT[name] for name in names]).unsqueeze(0)
        text = torch.cat([tokens, text], dim=2)[:, :, :length]
        mask = torch.cat([torch.ones(1, chunks, 1), mask], dim=2)[:, :, :length]
    return text, mask
