"""Self-supervised pre-training for images. Imported as `src` in the checkout and as `ssl_vision` when installed."""
