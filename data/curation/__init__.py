"""Choosing what is kept of the sources: captions, filters, scene cuts, the ledger that accounts for every source."""
