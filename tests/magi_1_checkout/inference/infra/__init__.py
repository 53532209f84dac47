"""What the processes of one generation share."""
