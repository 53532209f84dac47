"""What is kept in SQL: studies, generations, environments and exported profiles, beside Optuna's own tables."""

from calibrate.store.models import (
    Claim,
    Environment,
    Generation,
    GenerationDetail,
    ProfileRecord,
    StudyRecord,
    WorkerRecord,
)
from calibrate.store.storage import Heartbeat, Storage, database_failure, masked_url, portable_url
from calibrate.store.store import Store, policy_digest, refuse_changes

__all__ = [
    "Claim",
    "Environment",
    "Generation",
    "GenerationDetail",
    "Heartbeat",
    "ProfileRecord",
    "Storage",
    "Store",
    "StudyRecord",
    "WorkerRecord",
    "database_failure",
    "masked_url",
    "policy_digest",
    "portable_url",
    "refuse_changes",
]
