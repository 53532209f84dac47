"""SCOPE inference for autoregressive video diffusion: cache, predict or recompute, over the active blocks only.

```python
from scope_runtime import Profile, apply_scope

with apply_scope(pipe, Profile.load("profile.json")) as scope:
    video = pipe(prompt, ...).frames
print(scope.report)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scope_runtime.context import context_bytes
    from scope_runtime.errors import (
        AttachError,
        ConcurrentCallError,
        ContextTooLarge,
        ProfileError,
        ProfileMismatch,
        ScopeError,
        ScopeWarning,
    )
    from scope_runtime.gap_weights import GapWeights
    from scope_runtime.identity import ModelIdentity
    from scope_runtime.indicator import MODULATED_INPUT, NOISE_LEVEL, ChangeMap
    from scope_runtime.policy import Decider, Mode, Policy, plan_of
    from scope_runtime.preparation import Preparation, prepare
    from scope_runtime.profile import Profile
    from scope_runtime.report import Observation, PredictionError, Report
    from scope_runtime.schedule import Phase, Schedule
    from scope_runtime.scope import Scope, apply_scope, exact, run_policy
    from scope_runtime.settings import Scheduler, Settings
    from scope_runtime.taylor import History

__all__ = [
    "MODULATED_INPUT",
    "NOISE_LEVEL",
    "AttachError",
    "ChangeMap",
    "ConcurrentCallError",
    "ContextTooLarge",
    "Decider",
    "GapWeights",
    "History",
    "Mode",
    "ModelIdentity",
    "Observation",
    "Phase",
    "Policy",
    "PredictionError",
    "Preparation",
    "Profile",
    "ProfileError",
    "ProfileMismatch",
    "Report",
    "Schedule",
    "Scheduler",
    "Scope",
    "ScopeError",
    "ScopeWarning",
    "Settings",
    "apply_scope",
    "context_bytes",
    "exact",
    "plan_of",
    "prepare",
    "run_policy",
]

# Loaded when it is first asked for: whoever reads studies and databases alone does not wait for torch.
_PLACES = {
    "context_bytes": "context",
    "AttachError": "errors",
    "ConcurrentCallError": "errors",
    "ContextTooLarge": "errors",
    "ProfileError": "errors",
    "ProfileMismatch": "errors",
    "ScopeError": "errors",
    "ScopeWarning": "errors",
    "GapWeights": "gap_weights",
    "ModelIdentity": "identity",
    "MODULATED_INPUT": "indicator",
    "NOISE_LEVEL": "indicator",
    "ChangeMap": "indicator",
    "Decider": "policy",
    "Mode": "policy",
    "Policy": "policy",
    "plan_of": "policy",
    "Preparation": "preparation",
    "prepare": "preparation",
    "Profile": "profile",
    "Observation": "report",
    "PredictionError": "report",
    "Report": "report",
    "Phase": "schedule",
    "Schedule": "schedule",
    "Scope": "scope",
    "apply_scope": "scope",
    "exact": "scope",
    "run_policy": "scope",
    "Scheduler": "settings",
    "Settings": "settings",
    "History": "taylor",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
