"""What a training shows of itself: metrics, validation, previews, events, stalls."""
