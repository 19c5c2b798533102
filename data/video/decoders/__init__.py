"""Decoders of source videos behind one interface: `timeline` defines it, `selection` chooses the decoder of a file."""
