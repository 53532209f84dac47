"""MAGI-1: a checkout of the official code, with a configuration and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.families.check import Check
from calibrate.families.family import Checks, Family
from calibrate.families.magi_1.spec import Magi1Spec
from calibrate.spec.generation import Generation

if TYPE_CHECKING:
    from calibrate.families.footprint import Footprint
    from calibrate.families.magi_1.checkout import Checkout
    from calibrate.families.target import Target
    from scope_runtime import Settings


class Magi1(Family[Magi1Spec]):
    """Text-to-video with the official code as it is."""

    spec = Magi1Spec
    holder = "a checkout of MAGI-1"

    def open(self, folder: Path, spec: Magi1Spec, generation: Generation) -> Target:
        """Loads the model with the checkout's own code."""
        from calibrate.families.magi_1.target import Magi1Target

        return Magi1Target.open(folder, spec, generation)

    def usage(self, settings: Settings, name: str) -> str:
        """With the official pipeline, whose configuration holds the settings."""
        return (
            "from scope_runtime import Profile, apply_scope\n\n"
            f'profile = Profile.load("{name}")\n'
            "with apply_scope(pipeline, profile) as scope:  # a MagiPipeline\n"
            '    pipeline.run_text_to_video(prompt, "video.mp4")\n'
            "print(scope.report)"
        )

    def footprint(self, folder: Path, spec: Magi1Spec, generation: Generation) -> Footprint:
        """From the configuration that the study names."""
        from calibrate.families.magi_1.footprint import Magi1Footprint

        return Magi1Footprint.of(folder, spec, generation)

    def weights(self, folder: Path, spec: Magi1Spec, generation: Generation) -> list[list[Path]]:
        """The transformer's alone: text encoder and VAE take turns with it."""
        return [_checkout(folder, spec, generation).weights]

    def first_checks(self, folder: Path, spec: Magi1Spec, generation: Generation) -> Checks:
        """What the configuration says, which is held against the study."""

        def configuration() -> Check:
            checkout = _checkout(folder, spec, generation)
            runtime = checkout.config.runtime
            return Check(
                "configuration",
                "ok",
                f"{checkout.path.name}: chunks of {runtime.chunk_width} latent frames, {runtime.cfg_number} guidance "
                "branches",
            )

        return {"configuration": configuration}

    def further_checks(self, folder: Path, spec: Magi1Spec, generation: Generation) -> Checks:
        """Whether the code can be imported, and what the environment makes it put before every prompt."""

        def code() -> Check:
            from calibrate.families.magi_1.checkout import special_tokens

            package, _ = _checkout(folder, spec, generation).code()
            tokens = special_tokens(package)
            said = ", ".join(tokens) or "none (the official run.sh sets PAD_HQ=1 and PAD_DURATION=1)"
            return Check(
                "code", "ok", f"can be imported; tokens before every prompt: {said}", {"special_tokens": tokens}
            )

        return {"code": code}


def _checkout(folder: Path, spec: Magi1Spec, generation: Generation) -> Checkout:
    from calibrate.families.magi_1.checkout import Checkout

    return Checkout(folder, spec, generation)
