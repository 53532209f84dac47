"""What is kept in SQL: studies, generations, environments and exported profiles, beside Optuna's own tables."""

from calibrate.store.address import database_file, has_secrets, masked_url, portable_url, without_secrets
from calibrate.store.failure import DatabaseFailed
from calibrate.store.models import (
    Claim,
    Environment,
    Generation,
    GenerationDetail,
    ProfileRecord,
    StudyRecord,
    WorkerRecord,
)
from calibrate.store.storage import Heartbeat, Storage
from calibrate.store.store import CONTENT, Store, policy_digest, recorded, refuse_changes

__all__ = [
    "CONTENT",
    "Claim",
    "DatabaseFailed",
    "Environment",
    "Generation",
    "GenerationDetail",
    "Heartbeat",
    "ProfileRecord",
    "Storage",
    "Store",
    "StudyRecord",
    "WorkerRecord",
    "database_file",
    "has_secrets",
    "masked_url",
    "policy_digest",
    "portable_url",
    "recorded",
    "refuse_changes",
    "without_secrets",
]
