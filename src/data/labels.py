"""What a label means: a class number from 0 on, or none."""

UNLABELLED = -1
