"""Stage evaluate: measures reconstruction and prompt adherence, and writes the report."""
