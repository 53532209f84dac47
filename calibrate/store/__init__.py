"""What is kept in SQL: studies, generations, environments and exported profiles, beside Optuna's own tables."""

from calibrate.store.address import database_file, has_secrets, masked_url, portable_url, without_secrets
from calibrate.store.failure import DatabaseFailed
from calibrate.store.models import (
    DriverRecord,
    Environment,
    Generation,
    GenerationDetail,
    ProfileRecord,
    StudyRecord,
)
from calibrate.store.storage import Storage
from calibrate.store.store import (
    CANDIDATE,
    CONTENT,
    GUARANTEE,
    GUARANTEE_STOCK,
    PAIRED,
    PAIRED_STOCK,
    PREPARATION,
    Store,
    policy_digest,
    recorded,
    refuse_changes,
)

__all__ = [
    "CANDIDATE",
    "CONTENT",
    "GUARANTEE",
    "GUARANTEE_STOCK",
    "PAIRED",
    "PAIRED_STOCK",
    "PREPARATION",
    "DatabaseFailed",
    "DriverRecord",
    "Environment",
    "Generation",
    "GenerationDetail",
    "ProfileRecord",
    "Storage",
    "Store",
    "StudyRecord",
    "database_file",
    "has_secrets",
    "masked_url",
    "policy_digest",
    "portable_url",
    "recorded",
    "refuse_changes",
    "without_secrets",
]
