"""Stage evaluate: reconstruction and prompt adherence, measured."""
