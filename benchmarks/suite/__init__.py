"""What asv tracks: every call beside the oracle's, as seconds and as ratios that hold across machines."""
