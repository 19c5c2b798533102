"""Video files: probing, decoding, resizing, cutting into spans, encoding."""
