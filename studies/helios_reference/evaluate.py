"""Evaluation of the Helios reference pipeline on captions and seeds that it was not trained on.

    python -m studies.helios_reference.evaluate --json --clips 48

As that of the other reference: colours and initial directions are measured in the decoded pixels.
"""

from __future__ import annotations

from studies.helios_reference import models
from studies.reference.evaluate import command

if __name__ == "__main__":
    command(models.load_pipeline, models.PIPELINE_DIR, models.CALL, __doc__)
