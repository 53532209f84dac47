"""What a user of the package imports."""

from inference.pipeline.pipeline import MagiPipeline

__all__ = ["MagiPipeline"]
