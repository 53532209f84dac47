"""The trade-off between speed and quality that a calibration measured, to look at and to choose from; reads only."""
