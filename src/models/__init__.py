"""Networks: backbones, heads, teachers, and reading them from files."""
