"""Files: saving and resuming runs, and the layouts of published weights."""
