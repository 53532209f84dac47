"""What is kept in SQL: studies, generations, environments and exported profiles, beside Optuna's own tables."""

from calibrate.store.models import Environment, Generation, GenerationDetail, ProfileRecord, StudyRecord
from calibrate.store.storage import Storage, database_failure, masked_url, portable_url
from calibrate.store.store import Store, policy_digest

__all__ = [
    "Environment",
    "Generation",
    "GenerationDetail",
    "ProfileRecord",
    "Storage",
    "Store",
    "StudyRecord",
    "database_failure",
    "masked_url",
    "policy_digest",
    "portable_url",
]
