"""Which method on my images: many runs by one recipe rule, and what can honestly be said of their differences."""
