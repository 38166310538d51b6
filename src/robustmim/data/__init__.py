"""Images: data sets read from their official forms, training batches, sample photographs, and users' own files."""
