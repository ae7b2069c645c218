"""One formula a file: tensors in, tensors out."""
