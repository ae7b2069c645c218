"""Backbones as others take them: ONNX, and folders as the Hugging Face Hub keeps them."""
