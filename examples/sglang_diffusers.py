"""SGLang's diffusers backend with a profile: its own command line, with every pipeline accelerated as it is loaded.

    SCOPE_PROFILE=profiles/my-skyreels.json python examples/sglang_diffusers.py serve \
        --model-path /models/SkyReels-V2 --backend diffusers

Written after SGLang's code and not run with it; docs/serving.md says what was read, and what it comes to.
"""

from __future__ import annotations

import os
from typing import Any

from scope_runtime import Profile, apply_scope

LOADER = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline.DiffusersPipeline._load_diffusers_pipeline"


def accelerate(pipe: Any, *_arguments: Any, **_options: Any) -> None:
    """What SGLang calls with a pipeline that it has loaded and set up; another model than the profile's is refused."""
    apply_scope(pipe, Profile.load(os.environ["SCOPE_PROFILE"]))


def register() -> None:
    """Asks SGLang to call `accelerate` after its loader, in this process."""
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry

    HookRegistry.register(LOADER, accelerate)


# SGLang's workers are spawned: each runs this file by the second name before it loads anything.
if __name__ in ("__main__", "__mp_main__"):
    register()

if __name__ == "__main__":
    from sglang.cli.main import main

    main()
