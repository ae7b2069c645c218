"""Features of any folder of images: as files, and as pictures a person can judge a network by."""
