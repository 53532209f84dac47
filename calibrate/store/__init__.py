"""What is kept in SQL: studies, generations, environments and exported profiles, beside Optuna's own tables."""

from calibrate.store.models import Environment, Generation, ProfileRecord, StudyRecord
from calibrate.store.storage import Storage, database_failure, masked_url, portable_url
from calibrate.store.store import Store

__all__ = [
    "Environment",
    "Generation",
    "ProfileRecord",
    "Storage",
    "Store",
    "StudyRecord",
    "database_failure",
    "masked_url",
    "portable_url",
]
