"""Networks that predict the velocity of a flow."""
