"""What every stage needs: its record, fingerprints, the lock, progress, randomness, precision."""
